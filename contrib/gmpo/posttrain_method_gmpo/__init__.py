"""Geometric-mean policy optimisation: GRPO with the geometric instead of the arithmetic mean of a completion's ratios.

Paper: Zhao et al. 2025, "Geometric-Mean Policy Optimization", arXiv:2507.20673, section 3.

Loss in words: What a completion is worth is its reward minus the mean of its group, divided by the group's standard
deviation. Each token's log-ratio to the policy that sampled it is clipped to a band around 0, on the side to which the
advantage pushes it; the mean of these, as an exponential, is the completion's ratio. A geometric mean is little moved
by single outliers, so the band can be wide:

    loss = mean over completions of  -A exp(1/L sum over tokens of d),
    d = min(log ratio, epsilon_log) where A > 0, max(log ratio, -epsilon_log) otherwise

Differs from the paper: the standard deviation is the sample's plus ``advantage_epsilon``, as in TRL and verl. There is
no divergence from a reference.

Metrics:
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree; 0 means that nothing is learnt.
"""

from dataclasses import dataclass

import torch
from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    epsilon_log: float = 0.4
    """Width of the band of log-ratios on either side of 0 (the paper, section 4: (e^-0.4, e^0.4))."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """How far each reward lies above its group's mean, in standard deviations: (B,)."""
    return tensors.group_advantages(rewards, rollouts.group, config.advantage_epsilon)


@hookimpl
def posttrain_loss(batch, policy, config):
    """The advantage times the geometric mean of clipped ratios, one value a completion."""
    view, width = policy.completion, config.epsilon_log
    advantages = batch.advantages  # (B,)
    log_ratio = view.logps - batch.old_logps  # (B, T)
    rises = (advantages > 0)[:, None]  # (B, 1)
    held = torch.where(rises, log_ratio.clamp(max=width), log_ratio.clamp(min=-width))  # (B, T)
    loss = -advantages * tensors.importance_ratio(view.mean_of(held))  # (B,)
    metrics = {
        "ratio": tensors.importance_ratio(log_ratio.detach()),
        "clip_low": ((log_ratio < -width) & ~rises).to(held.dtype),
        "clip_high": ((log_ratio > width) & rises).to(held.dtype),
    }
    metrics = {name: PerToken(values, view.mask) for name, values in metrics.items()}
    return loss, metrics | {"advantage_size": advantages.abs()}
