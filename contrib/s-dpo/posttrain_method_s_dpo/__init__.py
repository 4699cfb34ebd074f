"""Softmax DPO: one chosen answer against several rejected ones at once.

Paper: Chen et al. 2024, "On Softmax Direct Preference Optimization for Recommendation", arXiv:2406.09215.

Loss: the first answer of a row is the chosen one, all others are rejected, in whatever order. The loss is the negative
log-sigmoid of minus the log-sum-exp, over the rejected answers, of beta times their log-ratio less that of the chosen
one: the cross-entropy of the chosen answer among all, under the implied rewards.

Differs from the paper: nothing. The paper has 3 to 15 negatives drawn from a catalogue of items; here they are the
row's.

Metrics:
- reward_best, reward_worst: beta times the log-ratio, policy over reference, of the first and the last answer. Start
  at 0.
- rank_accuracy: share of a prompt's pairs of answers whose rewards are in the order of the list. Rises from 0.5 or 0.
- logp_best: log-probability of the best answer under the policy.
"""

from dataclasses import dataclass

import torch
from posttrain import hookimpl


@dataclass(frozen=True)
class Config:
    """Options of softmax DPO."""

    beta: float = 1.0
    """Strength of the pull towards the reference (arXiv:2406.09215)."""


@hookimpl
def posttrain_loss(policy, reference, config):
    """Cross-entropy of the first answer among all."""
    view, other = policy.completion, reference.completion
    rewards = view.listed(config.beta * (view.sum - other.sum))  # (B, K)
    present = view.present
    loss = torch.where(present, rewards, -torch.inf).logsumexp(1) - rewards[:, 0]  # (B,)
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
