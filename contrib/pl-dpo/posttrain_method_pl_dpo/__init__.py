"""Plackett-Luce DPO: DPO on whole rankings.

Paper: Rafailov et al. 2023, "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
arXiv:2305.18290, appendix A.3.

Loss: the answers to a prompt are ranked, best first. In the model of Plackett and Luce the best one is drawn with a
probability proportional to the exponential of its reward, then the next among those that are left, and so on; rewards
are beta times the log-ratio of policy to reference. The loss is the negative log-probability of the ranking; for two
answers it is DPO's.

Differs from the paper: nothing. The loss of a prompt is a sum over its ranks, so prompts with more answers weigh more.

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
    """Options of Plackett-Luce DPO."""

    beta: float = 0.1
    """Strength of the pull towards the reference."""


@hookimpl
def posttrain_loss(policy, reference, config):
    """Negative log-probability of each prompt's ranking."""
    view, other = policy.completion, reference.completion
    rewards = view.listed(config.beta * (view.sum - other.sum))  # (B, K)
    present = view.present
    place = torch.arange(rewards.shape[1], device=rewards.device)  # (K,)
    later = (place > place[:, None]) & present[:, None] | (place == place[:, None])  # (B, K, K): j at or behind k
    left = torch.where(later, rewards[:, None], -torch.inf).logsumexp(2)  # (B, K)
    loss = torch.where(present, left - rewards, torch.zeros_like(rewards)).sum(1)  # (B,)
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
