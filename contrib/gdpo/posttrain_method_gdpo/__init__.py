"""GDPO: with several rewards, each is normalised within the group on its own, and only then are they summed.

Paper: 2026, "GDPO: Group reward-Decoupled Normalization Policy Optimization for Multi-reward RL Optimization",
arXiv:2601.05242.

Loss in words: to add up rewards before they are compared lets different combinations with one sum count the same, and
the reward with the largest spread drown the others. So each reward, less its group's mean, is divided by its own
standard deviation in the group; these are weighted and summed, and the sums are centred and divided by their standard
deviation over the step. The clipped policy gradient with the result is averaged over a completion's tokens, then over
completions:

    A_n = (r_n - mean of the group) / (deviation of the group + epsilon),   s = sum over n of weight_n A_n
    A = (s - mean of the step) / (deviation of the step + epsilon)

Differs from the paper: the standard deviation is the sample's plus ``advantage_epsilon``, as in TRL and verl.
``weights`` stands for the weights of --reward, which scale the logged reward alone. A reward that said nothing of a
completion adds nothing to its sum.

Metrics:
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- advantage_size: mean absolute advantage. About 0.8; 0 means that nothing is learnt.
"""

from dataclasses import dataclass

import torch
from posttrain import hookimpl, tensors
from posttrain.contract.surrogate import policy_loss
from posttrain.errors import SettingsError


@dataclass(frozen=True)
class Config:
    """Options."""

    weights: tuple[float, ...] | None = None
    """Weight of each reward, in the order of --reward. None: all 1 (the paper)."""
    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (PPO, arXiv:1707.06347)."""
    advantage_epsilon: float = 1e-4
    """Added to the standard deviations (TRL)."""


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """The weighted sum of each reward's advantages within its group, whitened over the step: (B,)."""
    parts = list(rollouts.reward_parts.values())  # (B,) each
    weights = config.weights or (1.0,) * len(parts)
    if len(weights) != len(parts):
        raise SettingsError(f"weights has {len(weights)} values for {len(parts)} rewards. Expected one for each.")
    total, everyone = torch.zeros_like(rewards), torch.zeros_like(rollouts.group)
    for weight, part in zip(weights, parts, strict=True):
        above = part - tensors.group_mean(part, rollouts.group)
        above = above / (tensors.group_std(part, rollouts.group) + config.advantage_epsilon)
        total = total + weight * above.nan_to_num(0.0)
    centred = total - tensors.group_mean(total, everyone)
    return (centred / (tensors.group_std(total, everyone) + config.advantage_epsilon)).to(rewards.dtype)


@hookimpl
def posttrain_loss(batch, policy, config):
    """Clipped policy gradient averaged over a completion's tokens."""
    return policy_loss(batch, policy, config, aggregation="sequence")
