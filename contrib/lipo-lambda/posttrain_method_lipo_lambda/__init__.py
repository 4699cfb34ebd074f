"""LiPO-lambda: learning to rank, in which a pair counts by what exchanging it would do to the ranking.

Paper: Liu et al. 2024, "LiPO: Listwise Preference Optimization through Learning-to-Rank", arXiv:2402.01878, equations
9 and 10.

Loss: s is beta times the log-ratio of policy to reference. Every pair of a prompt's answers with unequal ``scores``
has the logistic loss of the difference of s, weighed by the difference of gains, 2^score - 1, times the difference of
discounts, 1 / log(1 + rank), at the ranks that the policy gives the two answers now. Weights have no gradient. A
prompt's loss is the sum over its pairs.

Differs from the paper: nothing known; the paper does not say how a list is normalised, and it is not here. Scores are
meant to lie between 0 and 1.

Metrics:
- reward_best, reward_worst: beta times the log-ratio, policy over reference, of the first and the last answer. Start
  at 0.
- rank_accuracy: share of a prompt's pairs of answers whose rewards are in the order of the list. Rises from 0.5 or 0.
- logp_best: log-probability of the best answer under the policy.
"""

from dataclasses import dataclass

import torch
from posttrain import hookimpl
from torch.nn.functional import softplus


@dataclass(frozen=True)
class Config:
    """Options of LiPO-lambda."""

    beta: float = 0.05
    """Strength of the pull towards the reference (arXiv:2402.01878)."""


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Logistic loss of every pair, weighed by its effect on the ranking."""
    view, other = policy.completion, reference.completion
    rewards = view.listed(config.beta * (view.sum - other.sum))  # (B, K)
    present = view.present
    scores = batch.scores.to(rewards)  # (B, K)
    held = torch.where(present, rewards, -torch.inf).detach()
    rank = 1 + held.argsort(dim=1, descending=True, stable=True).argsort(1)  # (B, K): 1 is the largest reward
    gain, discount = scores.exp2() - 1, 1 / torch.log(1 + rank.to(rewards))
    weight = _gaps(gain).abs() * _gaps(discount).abs()  # (B, K, K)
    better = present[:, :, None] & present[:, None, :] & (_gaps(scores) > 0)
    loss = torch.where(better, weight * softplus(-_gaps(rewards)), torch.zeros_like(weight)).sum((1, 2))  # (B,)
    return loss, {
        "reward_best": rewards[:, 0].detach(),
        "reward_worst": rewards.gather(1, view.counts[:, None] - 1)[:, 0].detach(),
        "rank_accuracy": _rank_accuracy(rewards.detach(), present),
        "logp_best": view.listed(view.sum)[:, 0].detach(),
    }


def _rank_accuracy(rewards, present):
    """Share of the pairs of a list ``(B, K)`` that are in its order; NaN for a list of one."""
    pairs = torch.ones_like(present[0]).expand(len(present[0]), -1).triu(1) & present[:, None]  # (B, K, K)
    right = pairs & (rewards[:, :, None] > rewards[:, None, :])
    return right.sum((1, 2)) / pairs.sum((1, 2)).to(rewards.dtype)


def _gaps(values):
    """Differences ``(B, K, K)`` of every two values of a row ``(B, K)``."""
    return values[:, :, None] - values[:, None, :]
