"""PODS: many completions are sampled, those whose rewards differ most are learnt from.

Paper: Xu et al. 2025, "Not All Rollouts are Useful: Down-Sampling Rollouts in LLM Reinforcement Learning",
arXiv:2504.13818, section 3.

Loss in words: sampling is cheap beside learning. Of each group of n completions the ``keep`` are learnt from whose
rewards have the largest variance of all subsets of that size; it always consists of some of the highest and some of
the lowest. Kept completions are compared among themselves, in standard deviations, with the clipped policy gradient,
averaged over a completion's tokens, then over those kept.

Differs from the paper: nothing known. Of equally good subsets the one with the most even halves is taken.

Metrics:
- rollouts_learnt: share of the completions that are learnt from, keep of group-size.
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

    keep: int | None = None
    """Completions of a group that are learnt from; None is a quarter of them (the paper: 16 of 64)."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""
    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (PPO)."""


@hookimpl
def posttrain_select(rollouts, rewards, config):
    """The most telling completions of each group."""
    kept = []
    for group in rollouts.group.unique().tolist():
        rows = (rollouts.group == group).nonzero()[:, 0]  # (n,)
        count = max(1, len(rows) // 4) if config.keep is None else min(config.keep, len(rows))
        kept += rows[_telling(rewards[rows], count)].tolist()
    return Selection([rollouts.items[row] for row in sorted(kept)])


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """The kept rewards, compared within their groups: (B,)."""
    return tensors.group_advantages(rewards, rollouts.group, config.advantage_epsilon)


def _telling(rewards: torch.Tensor, count: int) -> list[int]:
    """Places of the ``count`` rewards (n,) with the largest variance: the i highest and the others from the lowest."""
    descending = rewards.argsort(descending=True, stable=True).tolist()
    best, largest = [], -1.0
    for high in sorted(range(count + 1), key=lambda high: abs(high - count / 2)):
        top = descending[:high]
        rest = [place for place in rewards.argsort(stable=True).tolist() if place not in top]
        places = top + rest[: count - high]
        variance = float(rewards[places].var(correction=0))
        if variance > largest + 1e-12:
            best, largest = places, variance
    return best


@hookimpl
def posttrain_loss(batch, policy, config):
    """Clipped policy gradient, averaged over the tokens of a completion."""
    loss, metrics = policy_loss(batch, policy, config, aggregation="sequence")
    return loss, metrics | {"advantage_size": batch.advantages.abs()}
