"""Quantile advantage estimation: the baseline is a quantile of the group's rewards, not their mean.

Paper: Wu et al. 2025, "Quantile Advantage Estimation for Entropy-Safe Reasoning", arXiv:2509.22611.

Loss in words: the baseline is the K-quantile of the group's rewards, the smallest reward that at least the share K of
them does not exceed. With rewards of 0 and 1: where at most 1 - K of the answers are right, the baseline is 0 and only
the rare successes teach; otherwise it is 1 and only the remaining failures do. The advantage is divided by the standard
deviation of the group. The clipped policy gradient with it is averaged over all tokens of the step, clipped further up
than down, as in DAPO.

Differs from the paper: the standard deviation is the sample's plus ``advantage_epsilon``, as in TRL and verl. Prompts
whose rewards are all equal stay in the step and teach nothing.

Metrics:
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- baseline: mean of the quantiles. With rewards of 0 and 1 the share of prompts whose failures teach.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree; 0 means that nothing is learnt.
"""

import math
from dataclasses import dataclass

import torch
from posttrain import hookimpl, tensors
from posttrain.contract.surrogate import policy_loss


@dataclass(frozen=True)
class Config:
    """Options."""

    quantile: float = 0.4
    """Which quantile is the baseline, above 0 and up to 1 (the paper: 0.4)."""
    epsilon_low: float = 0.2
    """How far the probability ratio may fall below 1 before it is clipped (DAPO, arXiv:2503.14476)."""
    epsilon_high: float = 0.28
    """How far it may rise above 1 (DAPO, arXiv:2503.14476)."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""

    def __post_init__(self) -> None:
        if not 0 < self.quantile <= 1:
            raise ValueError(f"quantile is {self.quantile}, expected a number above 0 and up to 1")


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """How far each reward lies above its group's quantile, in standard deviations: (B,)."""
    baseline = torch.full_like(rewards, torch.nan)  # (B,)
    for group in rollouts.group.unique():
        rows = ((rollouts.group == group) & ~rewards.isnan()).nonzero()[:, 0]
        if len(rows):
            place = math.ceil(config.quantile * len(rows) - 1e-9)  # 0.07 of 100 is 7.000000000000001
            baseline[rows] = rewards[rows].sort().values[max(place, 1) - 1]
    advantages = (rewards - baseline) / (tensors.group_std(rewards, rollouts.group) + config.advantage_epsilon)
    return {"advantages": advantages.nan_to_num(0.0), "baseline": baseline}


@hookimpl
def posttrain_loss(batch, policy, config):
    """Clipped policy gradient of each token."""
    return policy_loss(batch, policy, config, log=("baseline",))
