"""Adaptive divergence: forward KL where the head of the teacher's distribution is off, reverse KL where its tail is.

Paper: Wu et al. 2024, "Rethinking Kullback-Leibler Divergence in Knowledge Distillation for Large Language Models",
arXiv:2404.02657, section 4.

Loss in words: early in training KL(p || s) mends the likely tokens of the teacher p first, KL(s || p) the unlikely
ones. The vocabulary is cut in two by the teacher: sorted from the least likely token on, those whose probabilities add
up to no more than ``tail`` are the tail, the others the head. The gaps |p - s|, summed over head and tail, weigh the
two:

    loss = g_head / (g_head + g_tail) KL(p || s) + g_tail / (g_head + g_tail) KL(s || p),   averaged over all tokens

The weights have no gradient.

Differs from the paper: nothing; the cut follows the implementation in DSKD, which the authors' code agrees with.

Metrics:
- divergence: the loss of a token, in nats. Falls towards 0.
- head_weight: weight of KL(p || s). Above 0.5 while the likely tokens are off.
- entropy: of the student's next-token distribution in nats. Comes near the teacher's.
"""

from dataclasses import dataclass

import torch
from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    tail: float = 0.5
    """Probability that the tail may hold (the paper's mu is 0.5)."""

    def __post_init__(self) -> None:
        if not 0 <= self.tail <= 1:
            raise ValueError(f"tail is {self.tail}, expected a probability")


@hookimpl
def posttrain_token_statistics(logits, teacher_logits, config):
    """The weighted divergence of each token."""
    student, teacher = logits.log_softmax(-1), teacher_logits.log_softmax(-1)  # (n, V)
    with torch.no_grad():
        gap = (teacher.exp() - student.exp()).abs()  # (n, V)
        ascending, order = teacher.exp().sort(-1)
        tail = torch.zeros_like(gap, dtype=torch.bool).scatter(-1, order, ascending.cumsum(-1) <= config.tail)
        head_gap, tail_gap = gap.masked_fill(tail, 0).sum(-1), gap.masked_fill(~tail, 0).sum(-1)  # (n,)
        weight = head_gap / (head_gap + tail_gap).clamp(min=1e-12)
    forward, reverse = tensors.kl_divergence(teacher, student), tensors.kl_divergence(student, teacher)
    divergence = weight * forward + (1 - weight) * reverse
    return {"divergence": divergence, "head_weight": weight, "entropy": tensors.token_entropy(logits)}


@hookimpl
def posttrain_loss(policy):
    """The divergence, averaged over the tokens of the step."""
    view = policy.completion
    metrics = {
        name: PerToken(getattr(view, name).detach(), view.mask) for name in ("divergence", "head_weight", "entropy")
    }
    return PerToken(view.divergence, view.mask), metrics
