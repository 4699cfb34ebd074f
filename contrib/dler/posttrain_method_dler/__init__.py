"""DLER: the plainest length penalty, no reward for what was cut off, with a recipe that makes it work.

Paper: Liu et al. 2025, "DLER: Doing Length pEnalty Right", arXiv:2510.15110, section 3; the penalty as in NeMo-RL.

Loss in words: a completion that does not end within the truncation length has the reward 0. That makes groups noisy,
so three things are done as well: a reward less its group's mean is divided by the deviation of these differences over
the whole step, not over the group; the ratio is clipped further up than down; and prompts whose completions all have
the same reward are left out and replaced by others (at most generation-rounds batches):

    A = (R - mean of the group) / (deviation of R - mean over the step + advantage_epsilon)
    loss = mean over all tokens of  -min(ratio A, clip(ratio, 1 - epsilon, 1 + epsilon_high) A)

Differs from the paper: its adaptive form, which shortens the truncation for prompts that are solved anyway, is left
out. When no round brings a signal, the last one is taken as it is, and its gradient is 0.

Metrics:
- shaped_rewards: mean reward after the truncation.
- cut_off: share of completions beyond the truncation length. Falls; near 1 nothing can be learnt: raise it.
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree; 0 means nothing to learn.
"""

from dataclasses import dataclass

import torch
from posttrain import Selection, hookimpl, tensors
from posttrain.contract.surrogate import policy_loss


@dataclass(frozen=True)
class Config:
    """Options."""

    truncation_length: int | None = None
    """Tokens within which a completion has to end; None is max-new-tokens (the paper: 4000)."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""
    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (PPO)."""
    epsilon_high: float = 0.28
    """How far it may rise above 1 (DAPO, arXiv:2503.14476)."""


@hookimpl
def posttrain_select(rollouts, rewards, config):
    """Groups whose rewards, after the truncation, differ; the step is filled up with other prompts."""
    mixed = tensors.group_std(_truncated(rewards, rollouts, config), rollouts.group) > 0  # (B,)
    return Selection([item for item, kept in zip(rollouts.items, mixed.tolist(), strict=True) if kept], refill=True)


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """Rewards less their group's mean, in deviations of the step: (B,)."""
    shaped = _truncated(rewards, rollouts, config)
    above = shaped - tensors.group_mean(shaped, rollouts.group)
    spread = tensors.group_std(above, torch.zeros_like(rollouts.group))  # (B,), of all
    advantages = (above / (spread + config.advantage_epsilon)).nan_to_num(0.0)
    return {"advantages": advantages, "shaped_rewards": shaped, "cut_off": _cut_off(rollouts, config).to(rewards.dtype)}


def _cut_off(rollouts, config: Config) -> torch.Tensor:
    return ~rollouts.finished | (rollouts.lengths > config.truncation_length)  # (B,)


def _truncated(rewards: torch.Tensor, rollouts, config: Config) -> torch.Tensor:
    return torch.where(_cut_off(rollouts, config), rewards * 0, rewards)  # NaN stays: it has no reward


@hookimpl
def posttrain_loss(batch, policy, config):
    """Clipped policy gradient of each token."""
    loss, metrics = policy_loss(batch, policy, config, log=("shaped_rewards", "cut_off"))
    return loss, metrics | {"advantage_size": batch.advantages.abs()}
