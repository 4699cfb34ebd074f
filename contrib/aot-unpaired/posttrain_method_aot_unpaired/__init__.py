"""Alignment via optimal transport, unpaired: good answers should dominate bad ones as a distribution.

Paper: Melnyk et al. 2024, "Distributional Preference Alignment of LLMs via Optimal Transport", arXiv:2406.05882,
section 3.1 (unpaired).

Loss: rho is the log-ratio of policy to reference of a whole answer. Sort the rho of all good answers, and of all bad
ones, each by themselves; the k-th of the good should exceed the k-th of the bad:

    d_k = rho_good(k) - rho_bad(k),  loss = -(1 - label_smoothing) log sigmoid(beta d_k) - label_smoothing log
    sigmoid(-beta d_k), averaged over k

Differs from the paper: the sort runs over the whole optimiser step, over all devices, in a pass without gradient.
Every answer then meets the other of its rank as a constant; the factor 2 gives both together their pair's gradient.
With unequal counts an answer meets the quantile of the other kind, interpolated. A step of one kind alone costs 0.

Metrics:
- reward_good, reward_bad: beta * rho of good and of bad answers. The first rises above the second.
- violation: share of ranks at which the bad answer is ahead. Falls from about 0.5.
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
    """Probability that a label is the wrong one; from 0 to below 0.5."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing is {self.label_smoothing}, expected a number from 0 to below 0.5")


@hookimpl
def posttrain_annotate(examples, models):
    """For each answer the log-ratio of the same rank among the answers of the other kind."""
    rows = [example.sequences["completion"][0] for example in examples]
    pairs = zip(models.logps(rows, "policy"), models.logps(rows, "reference"), strict=True)
    ratios = torch.stack([(p - r).double().sum() for p, r in pairs])  # (B,)
    good = torch.tensor([bool(example.columns["label"]) for example in examples])
    other = torch.full_like(ratios, torch.nan)
    if good.any() and not good.all():
        for own, rivals in ((good, ratios[~good]), (~good, ratios[good])):
            rank = ratios[own].argsort().argsort().to(ratios.dtype)  # (n,)
            share = rank / (len(rank) - 1) if len(rank) > 1 else rank + 0.5
            other[own] = torch.quantile(rivals, share)
    return {"other_ratio": other}  # (B,)


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """One value an answer."""
    ratio = policy.completion.sum - reference.completion.sum  # (B,)
    good, other = batch.label.bool(), batch.other_ratio.to(ratio)
    known = ~other.isnan()
    gap = config.beta * torch.where(good, 1, -1) * (ratio - torch.where(known, other, ratio.detach()))  # (B,)
    loss = -(1 - config.label_smoothing) * F.logsigmoid(gap) - config.label_smoothing * F.logsigmoid(-gap)
    loss = torch.where(known, 2 * loss - loss.detach(), 0 * ratio)
    reward = config.beta * ratio.detach()
    nothing = torch.full_like(reward, torch.nan)  # an answer of the other kind does not count
    return loss, {
        "reward_good": torch.where(good, reward, nothing),
        "reward_bad": torch.where(good, nothing, reward),
        "violation": torch.where(known, (gap < 0).to(reward.dtype), nothing),
    }
