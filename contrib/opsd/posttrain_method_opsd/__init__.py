"""On-policy self-distillation: one model in two roles, the teacher with the reference solution in its prompt.

Paper: Zhao et al. 2026, "Self-Distilled Reasoner: On-Policy Self-Distillation for Large Language Models",
arXiv:2601.18734.

Loss in words: the student answers the problem. The same model, as it was at the start, reads that answer behind a
prompt that also holds the reference solution (the row's own completion), and says at each token how it would have gone
on. The whole distributions p of the teacher and s of the student are compared, averaged over all tokens of the step:

    forward_kl: KL(p || s)     reverse_kl: KL(s || p)     jsd: 1/2 KL(p || m) + 1/2 KL(s || m), m = (p + s) / 2

Differs from the paper: its pointwise clipping of the divergence is left out, because the value could not be verified.

Metrics:
- divergence: of a token in nats. Falls; above 0 as long as the solution says more than the problem.
- entropy: of the student's next-token distribution in nats. Falls slowly; below 0.01 it has collapsed.
- teacher_entropy: of the teacher's on the same tokens. Far below entropy: the solution decides nearly everything.
"""

from dataclasses import dataclass
from typing import Literal

from posttrain import PerToken, hookimpl, prompts, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    divergence: Literal["forward_kl", "jsd", "reverse_kl"] = "forward_kl"
    """How the two distributions are compared (the paper's best is forward_kl; ms-swift: jsd)."""
    template: str = "{prompt}\n\nHere is a reference solution:\n\n{solution}\n\nNow solve it in your own words."
    """What the teacher is asked: {prompt} stands for the prompt (of messages, for what the user says last), {solution}
    for the row's completion."""

    def __post_init__(self) -> None:
        prompts.check_template("template", self.template, "prompt", "solution")


@hookimpl
def posttrain_teacher_prompts(rollouts, config):
    """The prompt with the solution."""
    solutions = map(prompts.plain_text, rollouts.columns["completion"])
    return [
        prompts.reworded(prompt, config.template, solution=one)
        for prompt, one in zip(rollouts.prompts, solutions, strict=True)
    ]


@hookimpl
def posttrain_token_statistics(logits, teacher_logits, config):
    """The divergence of each token, and two entropies for the log."""
    beta = {"forward_kl": 0.0, "jsd": 0.5, "reverse_kl": 1.0}[config.divergence]
    return {
        "divergence": tensors.generalised_jsd(logits.log_softmax(-1), teacher_logits.log_softmax(-1), beta),
        "teacher_entropy": tensors.token_entropy(teacher_logits),
    }


@hookimpl
def posttrain_loss(policy):
    """The divergence, averaged over the tokens of the step."""
    view = policy.completion
    names = ("divergence", "teacher_entropy")
    metrics = {name: PerToken(getattr(view, name).detach(), view.mask) for name in names}
    return PerToken(view.divergence, view.mask), metrics
