"""Asymmetric importance sampling: tokens of good completions are weighted by the inverse of their ratio.

Paper: 2025, "ASPO: Asymmetric Importance Sampling Policy Optimization", arXiv:2510.06062.

Loss in words: What a completion is worth is its reward minus the mean of its group, divided by the group's standard
deviation. With the ratio as weight, tokens of good completions that are already likelier than before get still more
weight, and those that have fallen behind get less. So where A > 0 the weight is 1 / ratio, and where A < 0 it is the
ratio; beyond the clip there is no gradient, and a weight above c_pos or c_neg is cut to that, with its gradient (a soft
dual clip):

    A > 0:  -A c / constant(c)^2,  c = min(ratio, 1 + epsilon_high);   -A c_pos log p  where 1 / c > c_pos
    A < 0:  -A c,                  c = max(ratio, 1 - epsilon_low);    -A c_neg log p  where c > c_neg

averaged over all tokens of the step.

Differs from the paper: the standard deviation is the sample's plus ``advantage_epsilon``, as in TRL and verl. The
bounds do not depend on a token's entropy (an option of the authors' code).

Metrics:
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- cut: share of tokens whose weight is cut to c_pos or c_neg. Near 0.
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
    epsilon_high: float = 0.2
    """How far it may rise above 1 (the authors' code)."""
    c_pos: float = 3.0
    """Largest weight of a token of a good completion (the authors' code)."""
    c_neg: float = 3.0
    """Largest weight of a token of a bad completion (the authors' code)."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """How far each reward lies above its group's mean, in standard deviations: (B,)."""
    return tensors.group_advantages(rewards, rollouts.group, config.advantage_epsilon)


@hookimpl
def posttrain_loss(batch, policy, config):
    """Policy gradient weighted by the inverse ratio of good tokens and by the ratio of bad ones."""
    view = policy.completion
    advantages = batch.advantages.reshape(len(view.logps), -1).expand_as(view.logps)  # (B, T)
    ratio = tensors.importance_ratio(view.logps - batch.old_logps)  # (B, T)
    good, logps = advantages > 0, view.logps
    high, low = ratio.clamp(max=1 + config.epsilon_high), ratio.clamp(min=1 - config.epsilon_low)  # (B, T)
    held = high.detach()
    upside_down = torch.where(1 / held > config.c_pos, config.c_pos * logps, high / held.square())
    usual = torch.where(low > config.c_neg, config.c_neg * logps, low)
    loss = -advantages * torch.where(good, upside_down, usual)  # (B, T)
    metrics = {
        "ratio": ratio.detach(),
        "clip_low": ((ratio < 1 - config.epsilon_low) & (advantages < 0)).to(ratio.dtype),
        "clip_high": ((ratio > 1 + config.epsilon_high) & (advantages > 0)).to(ratio.dtype),
        "cut": torch.where(good, 1 / held > config.c_pos, low > config.c_neg).to(ratio.dtype),
        "advantage_size": advantages.abs(),
    }
    return PerToken(loss, view.mask), {name: PerToken(values, view.mask) for name, values in metrics.items()}
