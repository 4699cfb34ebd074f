"""Exact optimisation with rewards: the divergence from the policy's distribution over several answers to that of the
scores.

Paper: Ji et al. 2024, "Towards Efficient Exact Optimization of Language Model Alignment", arXiv:2402.00856.

Loss: q is the softmax over a prompt's answers of beta_pi times the log-ratios of policy to reference, p the softmax of
their ``scores`` over beta_r. The loss is KL(q || p): the policy concentrates on answers that score well, as
reinforcement learning does, instead of covering them all.

Differs from the paper: nothing. Scores are taken as they are: beta_r is in their unit.

Metrics:
- reward_best, reward_worst: beta_pi times the log-ratio, policy over reference, of the first and the last answer.
  Start at 0.
- rank_accuracy: share of a prompt's pairs of answers whose rewards are in the order of the list. Rises from 0.5 or 0.
- logp_best: log-probability of the best answer under the policy.
"""

from dataclasses import dataclass

import torch
from posttrain import hookimpl


@dataclass(frozen=True)
class Config:
    """Options of EXO with rewards."""

    beta_pi: float = 0.1
    """Strength of the pull towards the reference."""
    beta_r: float = 1.0
    """Temperature of the scores, above 0."""

    def __post_init__(self) -> None:
        if not self.beta_r > 0:
            raise ValueError(f"beta_r is {self.beta_r}, expected a number above 0: scores are divided by it.")


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Divergence from implied rewards to scores."""
    view, other = policy.completion, reference.completion
    rewards = view.listed(config.beta_pi * (view.sum - other.sum))  # (B, K)
    present = view.present
    ours, theirs = (
        values - torch.where(present, values, -torch.inf).logsumexp(1, keepdim=True)
        for values in (rewards, batch.scores.to(rewards) / config.beta_r)
    )  # (B, K) each
    loss = torch.where(present, ours.exp() * (ours - theirs), torch.zeros_like(ours)).sum(1)  # (B,)
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
