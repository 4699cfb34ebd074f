"""Self-distillation fine-tuning: the model that has seen a demonstration teaches the model that has not.

Paper: Shenfeld et al. 2026, "Self-Distillation Enables Continual Learning", arXiv:2601.19897.

Loss in words: the student answers the plain prompt. The same model, as it was when the run began, reads the same
answer behind a prompt that also holds a demonstration (the column privileged_context: a right answer, a document), and
says how it would have gone on at each token. The student is drawn to what the demonstration makes likelier, on its own
answers, and so forgets less than by imitation. The two distributions, s of the student and p of the teacher, are
compared over the student's topk likeliest tokens:

    M = alpha p + (1 - alpha) s
    divergence = alpha KL(p || M) + (1 - alpha) KL(s || M);   alpha = 0: KL(p || s),   alpha = 1: KL(s || p)
    loss = mean over answers of the mean over tokens of  min(exp(l - o), importance_clip) * divergence

with the log-probabilities l of the student now and o of when it sampled; this factor has no gradient.

Differs from the paper: the paper takes KL(s || p) (alpha 1) over all tokens, with a moving average as the teacher
(--teacher-model average). The defaults are those of TRL; so are the factor, which is 1 in the first update of an
answer, and the option to leave out the first tokens.

Metrics:
- divergence: of a token, in nats, without the factor. Falls; it stays above 0 as long as the demonstration says more
  than the prompt. 0 from the start: the demonstrations do not help the model, or the template hides them.
- entropy: of the student's next-token distribution in nats. Falls slowly; below 0.01 it has collapsed.
- weight: the factor. 1 in the first update of an answer, afterwards 0.8 to 1.2.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from posttrain import PerToken, hookimpl, prompts, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    alpha: float = 0.5
    """Between KL(teacher || student) at 0 and KL(student || teacher) at 1 (TRL; the paper: 1)."""
    mode: Literal["topk_logits", "full_logits"] = "topk_logits"
    """Compare the student's likeliest tokens, or the whole vocabulary (TRL)."""
    topk: int = 100
    """How many likeliest tokens (TRL)."""
    add_tail: bool = False
    """Count all other tokens as one more, instead of leaving them out (TRL)."""
    importance_clip: float = 2.0
    """Largest factor for a token that has become likelier since it was sampled (TRL). 0 turns the factor off."""
    skip_first_tokens: int = 0
    """Tokens at the beginning of an answer that are not learnt from: a teacher may refer to its demonstration there."""
    template: str = (
        "{prompt}\n\nHere is an example of a good response:\n\n{privileged_context}\n\nNow give a response of your own."
    )
    """What the teacher is asked: {prompt} stands for the prompt (of messages, for what the user says last),
    {privileged_context} for the demonstration."""

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is {self.alpha}, expected a number from 0 to 1")
        for name, least in (("topk", 1), ("skip_first_tokens", 0), ("importance_clip", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, expected {least} or more")
        prompts.check_template("template", self.template, "prompt", "privileged_context")


@hookimpl
def posttrain_teacher_prompts(rollouts, config):
    """The prompt with the demonstration."""
    shown = map(prompts.plain_text, rollouts.columns["privileged_context"])
    return [
        prompts.reworded(prompt, config.template, privileged_context=one)
        for prompt, one in zip(rollouts.prompts, shown, strict=True)
    ]


@hookimpl
def posttrain_token_statistics(logits, teacher_logits, config):
    """The divergence of each token, and the entropy for the log."""
    count = config.topk if config.mode == "topk_logits" else 0
    student, teacher = tensors.likeliest(logits, teacher_logits, count, config.add_tail)  # (n, k)
    divergence = tensors.generalised_jsd(student, teacher, config.alpha)
    return {"divergence": divergence}


@hookimpl
def posttrain_loss(batch, policy, config):
    """The divergence, averaged over an answer's tokens."""
    view = policy.completion
    weight = torch.ones_like(view.logps)  # (B, T)
    if config.importance_clip:
        weight = tensors.importance_ratio(view.logps.detach() - batch.old_logps).clamp(max=config.importance_clip)
    learnt = view.mask & (torch.arange(view.mask.shape[1], device=view.mask.device) >= config.skip_first_tokens)
    metrics = {"divergence": view.divergence.detach(), "weight": weight}
    metrics = {name: PerToken(values, view.mask) for name, values in metrics.items()}
    return tensors.masked_mean(weight * view.divergence, learnt), metrics
