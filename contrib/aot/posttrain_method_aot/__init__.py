"""Alignment via optimal transport, paired: the policy's margins should dominate the reference's as a distribution.

Paper: Melnyk et al. 2024, "Distributional Preference Alignment of LLMs via Optimal Transport", arXiv 2406.05882.

Loss in words: a pair's margin is the log-probability of the chosen answer less that of the rejected one, u under the
policy and v under the reference. Sort the u of all pairs, and the v, each by themselves; the k-th largest u should
exceed the k-th largest v (stochastic dominance of first order), pair by pair of equal rank:

    d_k = u_(k) - v_(k),   loss = -(1 - label_smoothing) log sigmoid(beta d_k) - label_smoothing log sigmoid(-beta d_k)

Differs from the paper: the sort runs over the whole optimiser step, over all devices, in a pass without gradient, so
micro-batches of any size give the same gradient. Every u meets the v of its own rank, which is the same sum.

Metrics:
- margin: u of a pair; should rise.
- violation: share of ranks where the policy's margin is below the reference's; 0.5 or less at the start, should fall.
- accuracy: share of pairs with u above 0.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from posttrain import hookimpl


@dataclass(frozen=True)
class Config:
    """Options."""

    beta: float = 0.01
    """How sharply a violation of the order is punished (TRL's and the authors' scale)."""
    label_smoothing: float = 0.0
    """Probability that a preference is the wrong way round; from 0 to below 0.5."""

    def __post_init__(self):
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing is {self.label_smoothing}, expected a number from 0 to below 0.5")


@hookimpl
def posttrain_annotate(examples, models):
    """For each pair the reference margin of the same rank among all pairs of the step."""
    chosen = [example.sequences["chosen"][0] for example in examples]
    rejected = [example.sequences["rejected"][0] for example in examples]
    margins = []
    for model in ("policy", "reference"):
        sums = torch.stack([logps.sum() for logps in models.logps([*chosen, *rejected], model)])  # (2B,)
        margins.append(sums[: len(examples)] - sums[len(examples) :])  # (B,)
    ranks = margins[0].argsort().argsort()  # (B,)
    return {"ranked_reference_margin": margins[1].sort().values[ranks]}  # (B,)


@hookimpl
def posttrain_loss(batch, policy, config):
    """One value a pair."""
    margin = policy.chosen.sum - policy.rejected.sum  # (B,)
    gap = config.beta * (margin - batch.ranked_reference_margin.to(margin))  # (B,)
    loss = -(1 - config.label_smoothing) * F.logsigmoid(gap) - config.label_smoothing * F.logsigmoid(-gap)
    seen = margin.detach()
    return loss, {"margin": seen, "violation": (gap < 0).detach(), "accuracy": seen > 0}
