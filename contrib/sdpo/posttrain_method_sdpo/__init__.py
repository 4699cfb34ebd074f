"""Self-distillation policy optimisation: the model that knows a right answer, or what went wrong, teaches itself.

Paper: Hübotter et al. 2026, "Reinforcement Learning via Self-Distillation", arXiv:2601.20802.

Loss in words: the student answers each prompt several times. A moving average of the student reads every answer again,
now behind a prompt that shows another answer of the group whose reward reached success_threshold, or feedback (the
column of that name, from a reward or the data), or both, and says how it would have gone on at each token. The student
is drawn to that. An answer for which there is neither teaches nothing. With distributions s of the student and p of
the teacher over the student's topk likeliest tokens and one more for all others:

    M = alpha p + (1 - alpha) s
    divergence = alpha KL(p || M) + (1 - alpha) KL(s || M);   alpha = 0: KL(p || s),   alpha = 1: KL(s || p)
    distillation = mean over answers of the mean over tokens of  min(exp(l - o), importance_clip) * divergence
    loss = weight * distillation + (1 - weight) * the clipped policy gradient of GRPO

l and o are log-probabilities of the token now and when it was sampled; the factor has no gradient. "sampled_token"
needs only the teacher's log-probability q of the token: its divergence is (l - q) l with the bracket held constant,
whose gradient is on average that of KL(s || p), whatever alpha is.

Differs from the paper: answers without anything to show count in the mean over answers, as in TRL: the rarer success
is, the smaller the loss. The wording of the teacher's prompt is our own.

Metrics:
- taught: share of answers for which the teacher was shown something. 0 for long: nothing is learnt with weight 1.
- advantage: q - l of the sampled tokens of these answers, what the teacher thinks of them. Minus its mean estimates
  KL(s || p) in nats; comes near 0 as the hints are taken in.
- entropy: of the student's next-token distribution in nats. Falls slowly; below 0.01 it has collapsed.
- importance: the factor. 1 in the first update of an answer, afterwards 0.8 to 1.2.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from posttrain import PerToken, hookimpl, prompts, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    mode: Literal["topk_logits", "full_logits", "sampled_token"] = "topk_logits"
    """Compare the student's likeliest tokens, the whole vocabulary, or only the sampled token (TRL's default)."""
    topk: int = 100
    """How many likeliest tokens (the authors' scripts)."""
    add_tail: bool = True
    """Count all other tokens as one more, instead of leaving them out (the paper)."""
    alpha: float = 0.5
    """Between KL(teacher || student) at 0 and KL(student || teacher) at 1 (the authors' scripts)."""
    importance_clip: float = 2.0
    """Largest factor for a token that has become likelier since it was sampled (the authors' scripts). 0: no factor."""
    weight: float = 1.0
    """Share of the distillation; the rest is GRPO's (the authors' scripts)."""
    success_threshold: float = 1.0
    """Least reward of an answer that is shown to the teacher as right (the authors' scripts)."""
    template: str = "{prompt}\n\n{hints}Now solve the task yourself."
    """What the teacher is asked: {prompt} stands for the prompt (of messages, for what the user says last), {hints}
    for the next two."""
    solution_template: str = "This answer was judged correct:\n\n{solution}\n\n"
    """How another answer is shown."""
    feedback_template: str = "Feedback on an earlier answer:\n\n{feedback}\n\n"
    """How feedback is shown."""
    epsilon: float = 0.2
    """How far GRPO's probability ratio may leave 1 before it is clipped."""
    advantage_epsilon: float = 1e-4
    """Added to the standard deviation of the rewards of a group (TRL)."""

    def __post_init__(self) -> None:
        for name in ("alpha", "weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a number from 0 to 1")
        if self.topk < 1:
            raise ValueError(f"topk is {self.topk}, expected 1 or more")
        prompts.check_template("template", self.template, "prompt", "hints")
        prompts.check_template("solution_template", self.solution_template, "solution")
        prompts.check_template("feedback_template", self.feedback_template, "feedback")


@hookimpl
def posttrain_teacher_prompts(rollouts, rewards, config):
    """The prompt with the first other right answer of the group and with the feedback; None where there is neither."""
    group, right = rollouts.group.tolist(), (rewards >= config.success_threshold).tolist()
    feedback = rollouts.columns.get("feedback", [None] * len(group))
    found = []
    for row, prompt in enumerate(rollouts.prompts):
        others = [i for i in range(len(group)) if group[i] == group[row] and i != row and right[i]]
        hints = config.solution_template.format(solution=rollouts.completions[others[0]]) if others else ""
        if feedback[row]:
            hints += config.feedback_template.format(feedback=prompts.plain_text(feedback[row]))
        found.append(prompts.reworded(prompt, config.template, hints=hints) if hints else None)
    return found


@hookimpl
def posttrain_token_statistics(logits, labels, teacher_logits, config):
    """The divergence of each token, the teacher's log-prob of it, and the entropy for the log."""
    count = config.topk if config.mode == "topk_logits" else 0
    student, teacher = tensors.likeliest(logits, teacher_logits, count, config.add_tail)  # (n, k)
    return {
        "divergence": tensors.generalised_jsd(student, teacher, config.alpha),
        "teacher_logps": teacher_logits.log_softmax(-1).gather(1, labels[:, None])[:, 0],
    }


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """How far each reward lies above its group's mean, in standard deviations: (B,)."""
    return tensors.group_advantages(rewards, rollouts.group, config.advantage_epsilon)


@hookimpl
def posttrain_loss(batch, policy, config):
    """Distillation, and the policy gradient where it has a share."""
    view = policy.completion
    ratio = tensors.importance_ratio(view.logps - batch.old_logps)  # (B, T)
    factor = ratio.detach().clamp(max=config.importance_clip) if config.importance_clip else torch.ones_like(ratio)
    gap = (view.logps - view.teacher_logps).detach()  # (B, T)
    divergence = gap * view.logps if config.mode == "sampled_token" else view.divergence
    taught = batch.taught.to(view.logps.dtype)  # (B,)
    loss = {"distillation": config.weight * taught * view.mean_of(factor * divergence)}
    if config.weight < 1:
        advantages = batch.advantages.reshape(len(view.logps), -1)  # (B, 1) or (B, T)
        surrogate = tensors.clipped_surrogate(ratio, advantages, config.epsilon, config.epsilon)
        loss["policy"] = (1 - config.weight) * view.mean_of(surrogate)
    shown = -gap.masked_fill(~batch.taught[:, None], torch.nan)
    metrics = {"advantage": shown, "importance": factor}
    return loss, {name: PerToken(one, view.mask) for name, one in metrics.items()} | {"taught": taught}
