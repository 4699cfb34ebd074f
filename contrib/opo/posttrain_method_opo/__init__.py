"""OPO: exact on-policy policy gradient with the baseline that has the least variance, weighted by length.

Paper: Hao et al. 2025, "On-Policy RL with Optimal Reward Baseline", arXiv:2505.23585.

Loss in words: the baseline with the least variance weighs each reward by the squared gradient of its completion, which
grows with the length; so it is the group's mean reward weighted by length. What a completion is worth is its reward
less that; it multiplies the log-probabilities, averaged over all tokens of the step:

    A = R - (sum over the group of L R) / (sum over the group of L),   loss = -mean over tokens of A log p

Differs from the paper: nothing. The policy gradient is exact only for fresh samples: leave updates-per-rollout and
minibatches-per-rollout at 1.

Metrics:
- ratio: probability relative to the sampling policy. Exactly 1 while every batch serves one update.
- baseline: mean of the baselines. Below the mean reward where long answers are the worse ones.
- advantage_size: mean absolute advantage, in units of the reward. 0 means that nothing is learnt.
"""

from dataclasses import dataclass

import torch
from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    length_weighted: bool = True
    """Weigh the baseline's rewards by the length of their completions (the paper). False: their plain mean."""


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """How far each reward lies above its group's mean weighted by length: (B,)."""
    weight = rollouts.lengths.to(rewards.dtype) if config.length_weighted else torch.ones_like(rewards)  # (B,)
    weight = weight.where(~rewards.isnan(), torch.nan)
    total = tensors.group_mean(weight * rewards, rollouts.group)
    baseline = total / tensors.group_mean(weight, rollouts.group)  # (B,)
    return {"advantages": (rewards - baseline).nan_to_num(0.0), "baseline": baseline}


@hookimpl
def posttrain_loss(batch, policy):
    """Log-probabilities weighted by the advantage."""
    view = policy.completion
    advantages = batch.advantages.reshape(len(view.logps), -1).expand_as(view.logps)  # (B, T)
    loss = -advantages * view.logps  # (B, T)
    metrics = {
        "ratio": tensors.importance_ratio((view.logps - batch.old_logps).detach()),
        "advantage_size": advantages.abs(),
    }
    metrics = {name: PerToken(values, view.mask) for name, values in metrics.items()}
    return PerToken(loss, view.mask), metrics | {"baseline": batch.baseline}
