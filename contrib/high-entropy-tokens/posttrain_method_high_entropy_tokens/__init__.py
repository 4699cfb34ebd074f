"""Forking tokens: only the fifth of all tokens at which the policy is most uncertain is learnt from.

Paper: Wang et al. 2025, "Beyond the 80/20 Rule: High-Entropy Minority Tokens Drive Effective Reinforcement Learning for
LLM Reasoning", arXiv:2506.01939, section 5.

Loss in words: What a completion is worth is its reward minus the mean of its group, divided by the group's standard
deviation. Each token's ratio is multiplied by this and clipped, further up than down, but only tokens whose entropy
under the policy before the update is at least the (1 - share)-quantile of all tokens of the batch count; most others
merely complete what was decided before. The sum is divided by the number of all tokens, learnt from or not.

Differs from the paper: the standard deviation is the sample's plus ``advantage_epsilon``, as in TRL and verl. The
quantile is that of the whole batch of rollouts, taken once, and linearly interpolated. Overlong answers are treated as
all others (--mask-truncated leaves them out).

Metrics:
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- chosen: share of tokens that are learnt from. Near share.
- entropy_threshold: entropy from which on a token is. Falls as the policy sharpens; near 0 little is left to decide.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree; 0 means that nothing is learnt.
"""

from dataclasses import dataclass

import torch
from posttrain import PerToken, hookimpl


@dataclass(frozen=True)
class Config:
    """Options."""

    share: float = 0.2
    """Share of the tokens that is learnt from (the paper: 0.2)."""
    epsilon_low: float = 0.2
    """How far the probability ratio may fall below 1 before it is clipped (DAPO, arXiv:2503.14476)."""
    epsilon_high: float = 0.28
    """How far it may rise above 1 (DAPO, arXiv:2503.14476)."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share}, expected a number above 0 and up to 1")


@hookimpl
def posttrain_advantages(rewards, rollouts, advantages, config):
    """Which tokens are uncertain enough to be learnt from (B, T); the advantages stay."""
    entropy = rollouts.old("entropy").to(rewards.dtype)  # (B, T)
    threshold = _quantile(entropy[rollouts.mask], 1 - config.share)
    chosen = rollouts.mask & (entropy >= threshold)
    columns = {"chosen": chosen, "entropy_threshold": torch.full_like(rewards, threshold)}
    return {"advantages": advantages, **columns}


@hookimpl
def posttrain_token_weights(batch, policy):
    """1 for the tokens that are learnt from, 0 for all others: (B, T)."""
    chosen = batch.chosen.to(policy.completion.logps.dtype)  # (B, T)
    metrics = {"chosen": PerToken(chosen, policy.completion.mask), "entropy_threshold": batch.entropy_threshold}
    return chosen, metrics


def _quantile(values: torch.Tensor, share: float) -> float:
    """Linearly interpolated quantile of (n,) values; torch.quantile refuses more than 16 million."""
    if not len(values):
        return 0.0
    place = share * (len(values) - 1)
    ascending = values.sort().values
    low, high = ascending[int(place)], ascending[min(int(place) + 1, len(values) - 1)]
    return float(low + (place - int(place)) * (high - low))
