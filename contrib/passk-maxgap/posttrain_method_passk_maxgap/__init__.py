"""GRPO for pass@k by the largest gap: only the best answer of a group learns, by its lead over the second best.

Paper: Tang et al. 2025, "Optimizing Language Models for Inference Time Objectives using Reinforcement Learning",
arXiv:2503.19595; the form of verl's estimator "grpo_passk".

Loss in words: where one takes the best of several answers, an answer helps by how far it exceeds the best of the
others, so only the best one counts. Its advantage is that lead, divided by the standard deviation of the group; all
others have 0. The clipped policy gradient with it is averaged over a completion's tokens, then over completions.

Differs from the paper: the standard deviation is the sample's plus ``advantage_epsilon``, as in TRL and verl. Without
``normalize`` the lead is taken as it is. With rewards of 0 and 1 only groups with exactly one right answer teach.

Metrics:
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- advantage_size: mean absolute advantage. Small: one completion of a group has one. 0 means that nothing is learnt.
"""

from dataclasses import dataclass

import torch
from posttrain import hookimpl, tensors
from posttrain.contract.surrogate import policy_loss


@dataclass(frozen=True)
class Config:
    """Options."""

    normalize: bool = True
    """Divide by the standard deviation of the group (verl)."""
    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (PPO, arXiv:1707.06347)."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """The lead of each group's best completion over its second best, 0 for the others: (B,)."""
    advantages = torch.zeros_like(rewards)  # (B,)
    for group in rollouts.group.unique():
        rows = ((rollouts.group == group) & ~rewards.isnan()).nonzero()[:, 0]
        if len(rows) > 1:
            best, second = rewards[rows].topk(2).values
            advantages[rows[rewards[rows].argmax()]] = best - second
    if config.normalize:
        advantages = advantages / (tensors.group_std(rewards, rollouts.group) + config.advantage_epsilon)
    return advantages.nan_to_num(0.0)


@hookimpl
def posttrain_loss(batch, policy, config):
    """Clipped policy gradient averaged over a completion's tokens."""
    return policy_loss(batch, policy, config, aggregation="sequence")
