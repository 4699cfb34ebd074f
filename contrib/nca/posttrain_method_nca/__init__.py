"""Noise contrastive alignment with rewards: each of several answers is told from the reference's noise by its score.

Paper: Chen et al. 2024, "Noise Contrastive Alignment of Language Models with Explicit Rewards", arXiv:2402.05369.

Loss: r is the implied reward of an answer, beta times its log-ratio of policy to reference, and t its share in the
softmax of the prompt's ``scores`` over alpha. Each of the K answers counts t times as a sample of the better policy
and 1 / K times as noise. Unlike a softmax of rewards this fixes their size, so the likelihood of good answers cannot
fall.

-sum_i (t_i log sigmoid(r_i) + log sigmoid(-r_i) / K)

Differs from the paper: nothing. Scores are taken as they are: alpha is in their unit.

Metrics:
- reward_best, reward_worst: beta times the log-ratio, policy over reference, of the first and the last answer. Start
  at 0.
- rank_accuracy: share of a prompt's pairs of answers whose rewards are in the order of the list. Rises from 0.5 or 0.
- logp_best: log-probability of the best answer under the policy.
"""

from dataclasses import dataclass

import torch
from posttrain import hookimpl
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Config:
    """Options of NCA."""

    beta: float = 0.01
    """Strength of the pull towards the reference."""
    alpha: float = 1.0
    """Temperature of the scores, above 0: towards 0 only the best answer counts (arXiv:2402.05369: 0.01 to 1)."""

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise ValueError(f"alpha is {self.alpha}, expected a number above 0: scores are divided by it.")


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Each answer for and against noise."""
    view, other = policy.completion, reference.completion
    rewards = view.listed(config.beta * (view.sum - other.sum))  # (B, K)
    present = view.present
    share = torch.where(present, batch.scores.to(rewards) / config.alpha, -torch.inf).softmax(1)  # (B, K)
    noise = present.to(rewards) / view.counts[:, None]
    loss = -(share * logsigmoid(rewards) + noise * logsigmoid(-rewards)).sum(1)  # (B,)
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
