"""CE-GPPO: clipped tokens keep a gradient, of a bounded size that is set for either side.

Paper: Su et al. 2025, "CE-GPPO: Coordinating Entropy via Gradient-Preserving Clipping Policy Optimization",
arXiv:2509.20712. With both weights 1 it is GPPO, arXiv:2508.07629.

Loss in words: What a completion is worth is its reward minus the mean of its group, divided by the group's standard
deviation. PPO drops the gradient of good tokens that rose too far and of bad ones that fell too far. Both hold the
balance of exploring and exploiting: the former sharpen the policy, the latter keep it open. Here their ratio is held at
the bound, with the gradient that it has there, times a weight:

    ratio                            inside the bounds, and where the advantage pulls back towards them
    beta1 (1 - epsilon_low)          below them, A < 0
    beta2 (1 + epsilon_high)         above them, A > 0

each times -A, averaged over all tokens of the step; in the last two the gradient is that value's times the log-prob's.

Differs from the paper: the standard deviation is the sample's plus ``advantage_epsilon``, as in TRL and verl.

Metrics:
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens beyond the bounds, below and above. Under 0.3.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree; 0 means that nothing is learnt.
"""

from dataclasses import dataclass

import torch
from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    epsilon_low: float = 0.2
    """How far the probability ratio may fall below 1 before it is clipped (DAPO, arXiv:2503.14476)."""
    epsilon_high: float = 0.28
    """How far it may rise above 1 (DAPO, arXiv:2503.14476)."""
    beta1: float = 0.5
    """Weight of bad tokens below the range (the paper: 0.5 to 0.75)."""
    beta2: float = 1.0
    """Weight of good tokens above the range (the paper)."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """How far each reward lies above its group's mean, in standard deviations: (B,)."""
    return tensors.group_advantages(rewards, rollouts.group, config.advantage_epsilon)


@hookimpl
def posttrain_loss(batch, policy, config):
    """The advantage times the ratio, or times the bound with the gradient of the ratio."""
    view = policy.completion
    advantages = batch.advantages.reshape(len(view.logps), -1).expand_as(view.logps)  # (B, T)
    ratio = tensors.importance_ratio(view.logps - batch.old_logps)  # (B, T)
    below = (ratio < 1 - config.epsilon_low) & (advantages < 0)
    above = (ratio > 1 + config.epsilon_high) & (advantages > 0)
    held = ratio.detach()
    scale = torch.where(below, config.beta1 * (1 - config.epsilon_low) / held, torch.ones_like(held))  # (B, T)
    scale = torch.where(above, config.beta2 * (1 + config.epsilon_high) / held, scale)
    loss = -scale * ratio * advantages  # (B, T)
    metrics = {
        "ratio": ratio.detach(),
        "clip_low": ((ratio < 1 - config.epsilon_low) & (advantages < 0)).to(ratio.dtype),
        "clip_high": ((ratio > 1 + config.epsilon_high) & (advantages > 0)).to(ratio.dtype),
        "advantage_size": advantages.abs(),
    }
    return PerToken(loss, view.mask), {name: PerToken(values, view.mask) for name, values in metrics.items()}
