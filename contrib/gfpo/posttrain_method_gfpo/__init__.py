"""Group filtered policy optimisation: sample more, learn only from the completions that are short for what they
achieve.

Paper: Shrivastava et al. 2025, "Sample More to Think Less: Group Filtered Policy Optimization for Concise Reasoning",
arXiv:2508.09726.

Loss in words: of each group the ``keep`` best completions by a measure are kept: reward per token ("efficiency"), or
the fewest tokens ("length"). What a kept one is worth is its reward less the mean of the kept, divided by their
standard deviation; all others are worth 0. The clipped policy gradient with it is averaged over all tokens of the step,
also those that are not kept:

    loss = -(sum over all tokens of  min(ratio A, clip(ratio, 1 - epsilon_low, 1 + epsilon_high) A)) / number of tokens

Differs from the paper: the standard deviation is the sample's plus ``advantage_epsilon``, as in TRL and verl. Equal
measures are kept in the order of sampling; equal lengths by reward. The number kept does not adapt to how hard a prompt
is (the paper's third variant).

Metrics:
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- kept: share of completions that are kept, keep / group_size.
- kept_length: mean length of these, in tokens. Falls.
- advantage_size: mean absolute advantage, of those not kept 0.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from posttrain import hookimpl, tensors
from posttrain.contract.surrogate import policy_loss


@dataclass(frozen=True)
class Config:
    """Options."""

    keep: int = 8
    """Completions of a group that are kept (the paper: 8 of 16 or 24)."""
    metric: Literal["efficiency", "length"] = "efficiency"
    """Keep those with the most reward per token, or the shortest."""
    epsilon_low: float = 0.2
    """How far the probability ratio may fall below 1 before it is clipped (DAPO, arXiv:2503.14476)."""
    epsilon_high: float = 0.2
    """How far it may rise above 1 (PPO)."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """How far the reward of each kept completion lies above the mean of the kept, in deviations; 0 for others: (B,)."""
    lengths = rollouts.lengths.to(rewards.dtype)  # (B,)
    score = rewards / lengths.clamp(min=1) if config.metric == "efficiency" else -lengths
    kept = torch.zeros_like(rewards, dtype=torch.bool)
    for group in rollouts.group.unique():
        rows = ((rollouts.group == group) & ~rewards.isnan()).nonzero()[:, 0]
        if config.metric == "length":
            rows = rows[rewards[rows].argsort(descending=True, stable=True)]
        kept[rows[score[rows].argsort(descending=True, stable=True)[: config.keep]]] = True
    compared = rewards.where(kept, torch.nan)  # (B,)
    advantages = tensors.group_advantages(compared, rollouts.group, config.advantage_epsilon)  # (B,)
    columns = {"kept": kept.to(rewards.dtype), "kept_length": lengths.where(kept, torch.nan)}
    return {"advantages": advantages, **columns}


@hookimpl
def posttrain_loss(batch, policy, config):
    """Clipped policy gradient of each token."""
    return policy_loss(batch, policy, config, log=("kept", "kept_length"))
