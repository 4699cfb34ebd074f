"""SpecKD: as in speculative decoding the teacher verifies the student's tokens; only accepted ones are distilled.

Paper: Huang et al. 2025, "SpecKD: Speculative Decoding for Effective Knowledge Distillation of LLMs",
arXiv:2510.24021.

Loss in words: the student answers, so each token is its proposal. Where the teacher has it among its ``topk``
likeliest tokens it is accepted, and the student learns the teacher's distribution p there; elsewhere the teacher's
uncertain opinion would be noise, and counts rejected_weight only. Averaged over all tokens of the step:

    loss = gate * KL(p || s),   gate = 1 where accepted, else rejected_weight

Differs from the paper: the paper proposes on given texts; ``proposal`` "likeliest" does so on the student's answers.
Rejected tokens stay in the denominator; what the paper divides by could not be verified.

Metrics:
- accepted: share of tokens that the teacher accepts. Rises towards 1; far below, the student is too weak for its
  teacher.
- divergence: KL(teacher || student) of a token in nats, accepted or not. Falls towards 0.
- entropy: of the student's next-token distribution in nats. Comes near the teacher's; below 0.01 it has collapsed."""

from dataclasses import dataclass
from typing import Literal

from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    topk: int = 5
    """Among how many of the teacher's likeliest tokens a proposal has to be (the paper: 5 to 10)."""
    rejected_weight: float = 0.0
    """Weight of rejected tokens (the paper: 0)."""
    proposal: Literal["sampled", "likeliest"] = "sampled"
    """The token that the student sampled, or the one that it finds likeliest at that place."""

    def __post_init__(self) -> None:
        if self.topk < 1:
            raise ValueError(f"topk is {self.topk}, expected a number of tokens from 1")


@hookimpl
def posttrain_token_statistics(logits, labels, teacher_logits, config):
    """The divergence of each token, and whether the teacher accepts it."""
    proposed = labels if config.proposal == "sampled" else logits.argmax(-1)  # (n,)
    better = teacher_logits > teacher_logits.gather(-1, proposed[:, None])  # (n, V)
    return {
        "accepted": (better.sum(-1) < config.topk).to(logits.dtype),
        "divergence": tensors.kl_divergence(teacher_logits.log_softmax(-1), logits.log_softmax(-1)),
    }


@hookimpl
def posttrain_loss(policy, config):
    """The gated divergence, averaged over the tokens of the step."""
    view = policy.completion
    gate = view.accepted + config.rejected_weight * (1 - view.accepted)  # (B, T)
    metrics = {name: PerToken(getattr(view, name).detach(), view.mask) for name in ("accepted", "divergence")}
    return PerToken(gate * view.divergence, view.mask), metrics
