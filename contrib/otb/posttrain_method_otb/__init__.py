"""Optimal token baseline: each position has the baseline of least variance, from how large the gradients up to it are.

Source: verl, docs/algo/otb.md (adv_estimator optimal_token_baseline); there is no paper.

Loss in words: the baseline with the least variance weighs each completion's reward by the squared norm of its gradient
so far. For a token with probability p that norm is, by the logits, 1 - 2 p + sum over the vocabulary of p^2; it is
summed from the start up to the token. At each position, the mean reward of the group's completions that are that long,
weighted by these sums, is what the reward is compared with:

    W_t = sum over s <= t of (1 - 2 p_s + sum of p^2 at s)
    A_t = R - (sum over the group of R W_t) / (sum over the group of W_t)

The clipped policy gradient with it is averaged over all tokens of the step.

Differs from the source: nothing but the rewards: they are given for whole completions, not for turns. The probabilities
are those before the update. Where only one completion is long enough, its tokens there are worth nothing.

Metrics:
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- advantage_size: mean absolute advantage, in units of the reward. 0 means that nothing is learnt.
"""

from dataclasses import dataclass

import torch
from posttrain import hookimpl


@dataclass(frozen=True)
class Config:
    """Options."""

    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (PPO, arXiv:1707.06347)."""


@hookimpl
def posttrain_token_statistics(logits):
    """The sum of squared probabilities of each token's distribution, and its entropy for the log."""
    return {"sum_pi_sq": logits.detach().softmax(-1).square().sum(-1)}


@hookimpl
def posttrain_advantages(rewards, rollouts):
    """How far the reward lies above the weighted mean of the group's completions that reach the token: (B, T)."""
    scored = rollouts.mask & ~rewards.isnan()[:, None]  # (B, T)
    norm = 1 - 2 * rollouts.old_logps.exp() + rollouts.old("sum_pi_sq")  # (B, T)
    weight = torch.where(scored, norm, 0.0).cumsum(1).clamp(min=0)  # (B, T)
    weight = torch.where(scored, weight + 1e-12, 0.0)  # all certain: each counts the same
    reward = rewards.nan_to_num(0.0)[:, None]  # (B, 1)
    advantages = torch.zeros_like(weight)
    for group in rollouts.group.unique():
        rows = rollouts.group == group
        total = weight[rows].sum(0)  # (T,)
        baseline = (weight[rows] * reward[rows]).sum(0) / total.where(total > 0, 1.0)  # (T,)
        advantages[rows] = torch.where(scored[rows], reward[rows] - baseline, 0.0)
    return advantages.to(rewards.dtype)
