"""VACO's filter: in completions that the policy is far from, tokens that would take it further are left out.

Paper: 2026, arXiv:2603.01365; the filter as in open-instruct (rho_mask_tv_divergence).

Loss in words: What a completion is worth is its reward minus the mean of its group, divided by the group's standard
deviation. Each token's ratio to the policy before the update is multiplied by this and clipped. rho is a token's
probability under that policy relative to the generator's. Where the mean of |rho - 1| over a completion, an estimate of
the total variation, exceeds delta, the tokens that would increase it (those whose rho has left 1 on the side to which
the advantage pushes) have weight 0. All others are weighted by rho, up to a cap. The mean is over all tokens of the
step:

    loss = mean of  w -min(ratio A, clip(ratio) A),   w = constant(min(rho, cap)),  0 where filtered

Differs from the paper: that also realigns the advantages of stale samples, in the manner of V-trace; like open-
instruct, this is the filter alone. The standard deviation is the sample's plus ``advantage_epsilon``, as in TRL and
verl. Do not set --correction as well: the weights would count twice.

Metrics:
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- sampler_weight: probability under the trainer's policy relative to the generator's. 1 where both agree; the core's
  sampler_difference says by how much they do not.
- filtered: share of tokens that are left out. Near 0 while generator and trainer agree.
- variation: mean |rho - 1| of a completion. Near 0; above delta its tokens are filtered.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree; 0 means that nothing is learnt.
"""

from dataclasses import dataclass

import torch
from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    delta: float = 0.2
    """Mean |rho - 1| of a completion above which its tokens are filtered. A choice of posttrain's: the source
    shares a bound with another mask."""
    rho_cap: float = 2.0
    """Largest weight (open-instruct)."""
    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (PPO, arXiv:1707.06347)."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """How far each reward lies above its group's mean, in standard deviations: (B,)."""
    return tensors.group_advantages(rewards, rollouts.group, config.advantage_epsilon)


@hookimpl
def posttrain_loss(batch, policy, config):
    """Clipped policy gradient of each token, times a weight that is 0 for what would drift further."""
    view = policy.completion
    advantages = batch.advantages.reshape(len(view.logps), -1).expand_as(view.logps)  # (B, T)
    ratio = tensors.importance_ratio(view.logps - batch.old_logps)  # (B, T)
    away = batch.old_logps - batch.sampled_logps  # (B, T)
    weight = tensors.importance_ratio(away).detach()  # (B, T)
    variation = view.mean_of((weight - 1).abs())[:, None]  # (B, 1)
    filtered = (variation > config.delta) & (away.sign() * advantages > 0)
    loss = tensors.clipped_surrogate(ratio, advantages, config.epsilon, config.epsilon)  # (B, T)
    loss = torch.where(filtered, torch.zeros_like(weight), weight.clamp(max=config.rho_cap)) * loss
    metrics = {
        "ratio": ratio.detach(),
        "clip_low": ((ratio < 1 - config.epsilon) & (advantages < 0)).to(ratio.dtype),
        "clip_high": ((ratio > 1 + config.epsilon) & (advantages > 0)).to(ratio.dtype),
        "sampler_weight": weight,
        "filtered": filtered.to(weight.dtype),
        "variation": variation.expand_as(loss),
        "advantage_size": advantages.abs(),
    }
    return PerToken(loss, view.mask), {name: PerToken(values, view.mask) for name, values in metrics.items()}
