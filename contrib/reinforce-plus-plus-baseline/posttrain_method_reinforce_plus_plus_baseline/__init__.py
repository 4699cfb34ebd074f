"""REINFORCE++ with a group baseline: rewards less their group's mean, then whitened over all tokens of the step.

Paper: Hu et al. 2025, "REINFORCE++: Stabilizing Critic-Free Policy Optimization with Global Advantage Normalization",
arXiv:2501.03262; the variant with a group baseline.

Loss in words: what a completion is worth is its reward minus its group's mean; each of its tokens gets this. Then all
tokens of the step are centred and divided by their standard deviation together, so that no group with a small spread is
blown up. The clipped policy gradient with it, and beta times half the squared log-ratio to the reference, are averaged
over all tokens:

    a = R - mean of the group,   A = (a - mean over tokens) / sqrt(variance over tokens + 1e-8)
    loss = mean of  -min(ratio A, clip(ratio, 1 - epsilon, 1 + epsilon) A) + beta / 2 (log p - log p_reference)^2

Differs from the paper: the variance is the sample's, as in verl. A step whose rewards are all equal within their groups
has advantages of exactly 0.

Metrics:
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- kl: estimate (k2) of the divergence from the reference per token (only with beta). Starts at 0; above 2 is a runaway.
- advantage_size: mean absolute advantage of a token. About 0.8; 0 means that nothing is learnt.
"""

from dataclasses import dataclass

import torch
from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (PPO, arXiv:1707.06347)."""
    beta: float = 1e-3
    """Weight of the divergence from the reference (k2; the authors' scripts). 0 needs no reference."""


@hookimpl
def posttrain_advantages(rewards, rollouts):
    """Rewards less their group's mean, whitened over all tokens of the step: (B, T)."""
    above = tensors.group_advantages(rewards, rollouts.group)  # (B,)
    flat = above[:, None].expand(rollouts.mask.shape)[rollouts.mask]  # (n,)
    everyone = torch.zeros(len(flat), dtype=torch.long)
    centred = flat - tensors.group_mean(flat, everyone)
    white = centred / (tensors.group_std(flat, everyone).square() + 1e-8).sqrt()
    return torch.zeros_like(rollouts.mask, dtype=rewards.dtype).masked_scatter(rollouts.mask, white)


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Clipped policy gradient and half the squared log-ratio to the reference."""
    view = policy.completion
    advantages = batch.advantages.reshape(len(view.logps), -1).expand_as(view.logps)  # (B, T)
    ratio = tensors.importance_ratio(view.logps - batch.old_logps)  # (B, T)
    loss = tensors.clipped_surrogate(ratio, advantages, config.epsilon, config.epsilon)  # (B, T)
    metrics = {
        "ratio": ratio.detach(),
        "clip_low": ((ratio < 1 - config.epsilon) & (advantages < 0)).to(ratio.dtype),
        "clip_high": ((ratio > 1 + config.epsilon) & (advantages > 0)).to(ratio.dtype),
        "advantage_size": advantages.abs(),
    }
    if config.beta:
        kl = (view.logps - reference.completion.logps).square() / 2  # (B, T)
        loss = loss + config.beta * kl
        metrics["kl"] = kl.detach()
    return PerToken(loss, view.mask), {name: PerToken(values, view.mask) for name, values in metrics.items()}
