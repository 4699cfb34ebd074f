"""RRHF: rank answers by their mean log-probability, and write the best one.

Paper: Yuan et al. 2023, "RRHF: Rank Responses to Align Language Models with Human Feedback without tears",
arXiv:2304.05302.

Loss: p of an answer is its mean log-probability per token. The rank term is the sum, over all pairs of a prompt's
answers of which one has the lower score, of how far its p exceeds the other's. The nll term is the mean negative log-
likelihood of the tokens of the best answer. There is no reference.

Differs from the paper: the paper sums the likelihood over the best answer's tokens, and its code takes a mean that
counts padding; here it is the mean over the answer's tokens.

Metrics:
- rank, nll: the two terms. rank falls to 0.
- reward_best, reward_worst: mean log-probability per token of the first and the last answer. The first rises or holds.
- rank_accuracy: share of a prompt's pairs of answers whose mean log-probabilities are in the order of the list. Rises.
- logp_best: log-probability of the best answer under the policy.
"""

from dataclasses import dataclass

import torch
from posttrain import hookimpl
from torch.nn.functional import relu


@dataclass(frozen=True)
class Config:
    """Options of RRHF."""

    rank_weight: float = 1.0
    """Weight of the rank term."""


@hookimpl
def posttrain_loss(batch, policy, config):
    """Hinge on every pair in the wrong order, and the likelihood of the best answer."""
    view = policy.completion
    rewards, present = view.listed(view.mean), view.present  # (B, K) each
    scores = batch.scores.to(rewards)
    both = present[:, :, None] & present[:, None, :]  # (B, K, K)
    worse = both & (scores[:, :, None] < scores[:, None, :])
    excess = relu(rewards[:, :, None] - rewards[:, None, :])
    loss = {
        "rank": config.rank_weight * torch.where(worse, excess, torch.zeros_like(excess)).sum((1, 2)),  # (B,)
        "nll": -rewards[:, 0],
    }
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
