"""Small functions of tensors that methods share: group statistics, divergence estimates, the clipped surrogate.

Letters in shapes: B examples, T tokens, n tokens of a chunk, V vocabulary. No function has state or changes a dtype.
A NaN among rewards means "not scored": the statistics of a group are those of its other members.
"""

from __future__ import annotations

import torch
from torch import Tensor


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum over the last dimension where ``mask`` is true: ``(..., T)`` to ``(...)``. Whatever is masked counts 0."""
    return torch.where(mask, values, torch.zeros_like(values)).sum(-1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the last dimension where ``mask`` is true: ``(..., T)`` to ``(...)``; 0 where nothing is."""
    return masked_sum(values, mask) / mask.sum(-1).clamp(min=1)


def group_mean(values: Tensor, group: Tensor) -> Tensor:
    """Mean of each one's group, ``(B,)``; ``group`` ``(B,)`` holds ids. Exact for a group of equal values."""
    _, lowest, total, size = _group_sums(values, group)
    return lowest + total / size


def group_std(values: Tensor, group: Tensor) -> Tensor:
    """Sample standard deviation (divisor n - 1) of each one's group, ``(B,)``; 0 for a group of one or equal values."""
    square = (values - group_mean(values, group)).square()
    _, lowest, total, size = _group_sums(square, group)
    return ((total + lowest * size) / (size - 1).clamp(min=1)).sqrt()


def leave_one_out_mean(values: Tensor, group: Tensor) -> Tensor:
    """Mean of the *other* members of each one's group, ``(B,)``; the own value where there is no other.

    Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free": (sum of the group - x_i) / (n - 1).
    """
    own, lowest, total, size = _group_sums(values, group)
    others = size - (~values.isnan()).to(size.dtype)
    mean = lowest + (total - own) / others.clamp(min=1)
    return torch.where(others > 0, mean, values)


def _group_sums(values: Tensor, group: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Per member ``(B,)``: its height above the lowest of its group, that lowest, the sum of heights, the group's size.

    Heights rather than values, because the mean of equal floats is not always that float: three times 0.1 sums to
    0.30000000000000004, and a difference of 1e-17 divided by a spread of 1e-17 is a large advantage.
    """
    ids, index = group.unique(return_inverse=True)  # index (B,)
    present = ~values.isnan()
    empty = values.new_zeros(len(ids))
    size = empty.index_add(0, index, present.to(values.dtype)).clamp(min=1)
    infinite = torch.where(present, values, torch.full_like(values, torch.inf))
    lowest = torch.full_like(empty, torch.inf).scatter_reduce(0, index, infinite, "amin")
    lowest = torch.where(lowest.isinf(), torch.full_like(lowest, torch.nan), lowest)  # a group that nobody scored
    height = torch.where(present, values - lowest[index], torch.zeros_like(values))
    return height, lowest[index], empty.index_add(0, index, height)[index], size[index]


def kl_k1(logps: Tensor, reference: Tensor) -> Tensor:
    """Estimate of KL(policy || reference) on tokens that the policy sampled: log p - log q. Unbiased, may be negative.

    Schulman 2020, http://joschu.net/blog/kl-approx.html. Any shape. As a loss its gradient is zero on average: use it
    in the reward.
    """
    return logps - reference


def kl_k3(logps: Tensor, reference: Tensor) -> Tensor:
    """Estimate of KL(policy || reference) on tokens that the policy sampled: q/p - 1 - log(q/p). Never negative.

    Schulman 2020, http://joschu.net/blog/kl-approx.html. Any shape; unbiased, with less variance than k1.
    The exponential is held below e^20: one token that the policy all but excludes would make the loss infinite.
    """
    log_ratio = reference - logps
    return log_ratio.clamp(max=20).expm1() - log_ratio


def importance_ratio(log_ratio: Tensor) -> Tensor:
    """Ratio of probabilities from its logarithm, any shape, held within e^-20 and e^20.

    A sequence's ratio is a product over all its tokens: without the bound one outlier is infinite, and infinity times
    an advantage of 0 is not a number. Beyond the bound there is no gradient.
    """
    return log_ratio.clamp(-20, 20).exp()


def clipped_surrogate(ratio: Tensor, advantages: Tensor, low: float, high: float, cap: float | None = None) -> Tensor:
    """The PPO objective as a loss: -min(ratio A, clip(ratio, 1 - low, 1 + high) A), of the shape of both, broadcast.

    Schulman et al. 2017, arXiv:1707.06347 eq. 7. ``cap`` also bounds the ratio where the advantage is negative, where
    the minimum alone would let it grow (arXiv:2505.07291; the same loss as dual clip, arXiv:1912.09729).
    """
    free = ratio if cap is None else ratio.clamp(max=cap)
    return -torch.minimum(free * advantages, ratio.clamp(1 - low, 1 + high) * advantages)


def token_entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of each token's distribution: logits ``(n, V)`` to ``(n,)``, without gradient."""
    return torch.special.entr(logits.detach().softmax(-1)).sum(-1)
