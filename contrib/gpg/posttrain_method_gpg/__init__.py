"""Group policy gradient: plain REINFORCE with the group's mean as baseline, corrected for groups without a signal.

Paper: Chu et al. 2025, "GPG: A Simple and Strong Reinforcement Learning Baseline for Model Reasoning",
arXiv:2504.02546.

Loss in words: what a completion is worth is its reward minus its group's mean, with no division by a deviation. Groups
whose rewards are all equal add nothing to the gradient and still to its denominator; so everything is multiplied by
alpha, the number of completions divided by that of completions in groups with different rewards. The loss is the log-
probability times this, averaged over all tokens of the step; there is no ratio, no clip, no reference:

    A = alpha (R - mean of the group) / f_norm,   loss = -(sum over all tokens of A log p) / number of tokens

Differs from the paper: nothing. verl counts rewards other than 0 instead, which is alpha only where rewards are 0 and 1
and mixed groups are half right.

Metrics:
- ratio: probability relative to the sampling policy. Exactly 1 while every batch serves one update.
- alpha: by how much the signal is scaled up. 1 while every group disagrees; above 5 the task is too easy or too hard.
- advantage_size: mean absolute advantage, in units of the reward. 0 means that nothing is learnt.
"""

from dataclasses import dataclass

import torch
from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    f_norm: float = 1.0
    """Divisor of all advantages (the paper's F_norm)."""


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """How far each reward lies above its group's mean, times alpha: (B,)."""
    above = tensors.group_advantages(rewards, rollouts.group)  # (B,)
    telling = tensors.group_std(rewards, rollouts.group) > 0  # (B,)
    alpha = len(rewards) / max(int(telling.sum()), 1)
    return {"advantages": alpha * above / config.f_norm, "alpha": torch.full_like(rewards, alpha)}


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
    return PerToken(loss, view.mask), metrics | {"alpha": batch.alpha}
