"""Reinforce-Rej: right is +1, wrong is -1, and prompts that are all right or all wrong are left out.

Paper: Xiong et al. 2025, "A Minimalist Approach to LLM Reasoning: from Rejection Sampling to Reinforce",
arXiv:2504.11343, section 3.

Loss in words: a prompt whose completions are all right teaches nothing new, one whose completions are all wrong mostly
harm; both are left out. In the others a completion is worth +1 where its reward is above threshold and -1 elsewhere,
without baseline or deviation. Each token's ratio to the policy that sampled it is clipped; the mean is over all tokens
that are kept. Where no prompt of the step is mixed, the step is taken on all with the advantage 0.

Differs from the paper: nothing known; the share of prompts that are left out is not made up for by others.

Metrics:
- rollouts_learnt: share of the completions that are learnt from. Falls as prompts get solved.
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

    threshold: float = 0.0
    """Completions with a reward above this are right."""
    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (PPO)."""


@hookimpl
def posttrain_select(rollouts, rewards, config):
    """Groups with right and wrong completions."""
    kept = _mixed(rewards, rollouts.group, config).tolist()
    items = [item for item, mixed in zip(rollouts.items, kept, strict=True) if mixed]
    return Selection(items or None)


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """+1 or -1 in mixed groups: (B,)."""
    sign = torch.where(rewards > config.threshold, 1.0, -1.0).to(rewards.dtype)
    taught = _mixed(rewards, rollouts.group, config) & ~rewards.isnan()
    return torch.where(taught, sign, 0.0)


def _mixed(rewards: torch.Tensor, group: torch.Tensor, config: Config) -> torch.Tensor:
    right = torch.where(rewards.isnan(), rewards, (rewards > config.threshold).to(rewards.dtype))  # (B,)
    return tensors.group_std(right, group) > 0


@hookimpl
def posttrain_loss(batch, policy, config):
    """Clipped policy gradient of each token."""
    loss, metrics = policy_loss(batch, policy, config)
    return loss, metrics | {"advantage_size": batch.advantages.abs()}
