"""Trajectory balance with a group estimate of the partition function (VarGrad), on answers that are there already.

Papers: Bartoldson et al. 2025, "Trajectory Balance with Asynchrony: Decoupling Exploration and Learning for Fast,
Scalable LLM Post-Training", arXiv:2503.18929, equation 5; the same up to a factor as AGRO, arXiv:2503.19612.

Loss: the optimum of a score under a penalty beta for leaving the reference is p_reference exp(score / beta) / Z. For
each of a prompt's K answers, with log-probabilities S of whole answers,

    u = S_reference + score / beta - S,    loss = mean over the answers of (u - mean u)^2

where the mean of u estimates log Z. At the optimum every u is log Z. Any answers will do, whoever wrote them, and a
constant added to all scores of a prompt changes nothing.

Differs from the paper: it draws answers from a buffer that the policy fills; these are the data's. On answers
of the policy itself: ``tba``.

Metrics:
- log_z: mean u, the estimate of log Z.
- spread: root of the loss, in nats. Falls.
- rank_accuracy: share of a prompt's pairs of answers whose log-ratios are in the order of their scores. Rises.
"""

from dataclasses import dataclass

import torch
from posttrain import hookimpl


@dataclass(frozen=True)
class Config:
    """Options of trajectory balance."""

    beta: float = 0.5
    """Penalty for leaving the reference, in the unit of the score (the papers: 0.03 to 1)."""

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta is {self.beta}, expected a number above 0: scores are divided by it.")


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Variance of the residuals of a prompt's answers."""
    view, present = policy.completion, policy.completion.present  # (B, K)
    ratio = view.listed(view.sum - reference.completion.sum)
    count = present.sum(1).to(ratio.dtype)  # (B,)
    residual = torch.where(present, batch.scores.to(ratio) / config.beta - ratio, 0.0)  # (B, K)
    center = (residual.sum(1) / count).detach()
    loss = torch.where(present, (residual - center[:, None]).square(), 0.0).sum(1) / count
    return loss, {
        "log_z": center,
        "spread": loss.detach().sqrt(),
        "rank_accuracy": _rank_accuracy(ratio.detach(), present),
    }


def _rank_accuracy(values, present):
    """Share of the pairs of a list ``(B, K)`` that are in its order; NaN for a list of one."""
    pairs = torch.ones_like(present[0]).expand(len(present[0]), -1).triu(1) & present[:, None]  # (B, K, K)
    right = pairs & (values[:, :, None] > values[:, None, :])
    return right.sum((1, 2)) / pairs.sum((1, 2)).to(values.dtype)
