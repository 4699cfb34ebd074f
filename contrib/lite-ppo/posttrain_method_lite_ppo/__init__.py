"""Lite PPO: two tricks that are enough: the mean of the group with the deviation of the step, and the mean over tokens.

Paper: Liu et al. 2025, "Part I: Tricks or Traps? A Deep Dive into RL for LLM Reasoning", arXiv:2508.08221, section 5.

Loss in words: what a completion is worth is its reward minus its group's mean, divided by the standard deviation of all
rewards of the step: that of a group in which nearly all agree is tiny, and would blow up the rest. The clipped policy
gradient with it is averaged over all tokens of the step:

    loss = -(sum over all tokens of  min(ratio A, clip(ratio, 1 - epsilon, 1 + epsilon) A)) / number of tokens

There is no divergence from a reference.

Differs from the paper: the standard deviation is the sample's plus ``advantage_epsilon``, as in TRL and verl.

Metrics:
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree as much as the step.
"""

from dataclasses import dataclass

import torch
from posttrain import hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (PPO, arXiv:1707.06347)."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """How far each reward lies above its group's mean, in standard deviations of the step: (B,)."""
    above = rewards - tensors.group_mean(rewards, rollouts.group)
    deviation = tensors.group_std(rewards, torch.zeros_like(rollouts.group))
    return (above / (deviation + config.advantage_epsilon)).nan_to_num(0.0)  # NaN: it has no reward
