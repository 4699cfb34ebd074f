"""Decoupled PPO: what may be stale samples are clipped around a recent policy and weighted for the one that sampled.

Paper: Fu et al. 2025, "AReaL: A Large-Scale Asynchronous Reinforcement Learning System for Language Reasoning",
arXiv:2505.24298, section 5; the idea is that of Hilton et al. 2021, arXiv:2110.00641.

Loss in words: What a completion is worth is its reward minus the mean of its group, divided by the group's standard
deviation. When rollouts run ahead of the trainer, the policy that sampled may be several versions old, and a trust
region around it would hold the trainer back. So the ratio is taken to the trainer's policy before the update, and
clipped there; the token's loss is multiplied by its probability under that policy relative to the sampler's. Tokens
with a weight above ``weight_cap`` are left out:

    loss = mean over all tokens of  constant(p_old / p_sampled) * -min(ratio A, clip(ratio, 1 - epsilon, 1 + epsilon) A)

Differs from the paper: the advantages are GRPO's, where AReaL has PPO's with gamma and lambda 1. The standard deviation
is the sample's plus ``advantage_epsilon``, as in TRL and verl. p_old is computed by a forward pass, not interpolated
between versions. Do not set --correction as well: the weights would count twice.

Metrics:
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- sampler_weight: probability under the trainer's policy relative to the generator's. 1 where both agree; the core's
  sampler_difference says by how much they do not.
- left_out: share of tokens above the cap. Near 0; above 0.05 the samples are too old.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree; 0 means that nothing is learnt.
"""

from dataclasses import dataclass

import torch
from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (PPO, arXiv:1707.06347)."""
    weight_cap: float = 5.0
    """Largest weight that is learnt from (AReaL's behav_imp_weight_cap)."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """How far each reward lies above its group's mean, in standard deviations: (B,)."""
    return tensors.group_advantages(rewards, rollouts.group, config.advantage_epsilon)


@hookimpl
def posttrain_loss(batch, policy, config):
    """Clipped policy gradient of each token, times its weight against the policy that sampled."""
    view = policy.completion
    advantages = batch.advantages.reshape(len(view.logps), -1).expand_as(view.logps)  # (B, T)
    ratio = tensors.importance_ratio(view.logps - batch.old_logps)  # (B, T)
    away = batch.old_logps - batch.sampled_logps  # (B, T)
    weight = tensors.importance_ratio(away).detach()  # (B, T)
    kept = weight <= config.weight_cap
    loss = tensors.clipped_surrogate(ratio, advantages, config.epsilon, config.epsilon)  # (B, T)
    loss = torch.where(kept, weight, torch.zeros_like(weight)) * loss
    metrics = {
        "ratio": ratio.detach(),
        "clip_low": ((ratio < 1 - config.epsilon) & (advantages < 0)).to(ratio.dtype),
        "clip_high": ((ratio > 1 + config.epsilon) & (advantages > 0)).to(ratio.dtype),
        "sampler_weight": weight,
        "left_out": (~kept).to(weight.dtype),
        "advantage_size": advantages.abs(),
    }
    return PerToken(loss, view.mask), {name: PerToken(values, view.mask) for name, values in metrics.items()}
