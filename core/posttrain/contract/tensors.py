"""Tensor functions that methods share: group statistics, divergence estimates, the clipped surrogate.

Letters in shapes: B examples, T tokens, n tokens of a chunk, V vocabulary. No function has state or changes a dtype. A
NaN among rewards means "not scored": the statistics of a group are those of its other members.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

#: Rows of vocabulary size that fit into a CPU's cache.
CACHED_ROWS = 16


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum over the last dimension where ``mask`` is True: ``(..., T)`` to ``(...)``. Masked entries count 0."""
    return torch.where(mask, values, torch.zeros_like(values)).sum(-1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Average over the last dimension where ``mask`` is True: ``(..., T)`` to ``(...)``; 0 where no entry is."""
    return masked_sum(values, mask) / mask.sum(-1).clamp(min=1)


def group_mean(values: Tensor, group: Tensor) -> Tensor:
    """Return the mean of each member's group, ``(B,)``; ``group`` ``(B,)`` holds ids. Exact for equal values."""
    _, lowest, total, size = _group_sums(values, group)
    return lowest + total / size


def group_std(values: Tensor, group: Tensor) -> Tensor:
    """Return the sample standard deviation (divisor n - 1) of each group, ``(B,)``; 0 for one or equal values."""
    square = (values - group_mean(values, group)).square()
    _, lowest, total, size = _group_sums(square, group)
    return ((total + lowest * size) / (size - 1).clamp(min=1)).sqrt()


def leave_one_out_mean(values: Tensor, group: Tensor) -> Tensor:
    """Return the mean of the *other* members of each group, ``(B,)``; the own value where there is no other.

    Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free": (sum of the group - x_i) / (n - 1).
    """
    own, lowest, total, size = _group_sums(values, group)
    others = size - (~values.isnan()).to(size.dtype)
    mean = lowest + (total - own) / others.clamp(min=1)
    return torch.where(others > 0, mean, values)


def group_advantages(rewards: Tensor, group: Tensor, epsilon: float | None = None) -> Tensor:
    """Return each reward less its group's mean, ``(B,)``; 0 for a completion without a reward.

    With ``epsilon`` divided by the group's sample standard deviation plus ``epsilon`` (GRPO, arXiv:2402.03300 section
    4.1); without it in units of the reward (Dr. GRPO, arXiv:2503.20783).
    """
    advantages = rewards - group_mean(rewards, group)
    if epsilon is not None:
        advantages = advantages / (group_std(rewards, group) + epsilon)
    return advantages.nan_to_num(0.0)


def _group_sums(values: Tensor, group: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return per member ``(B,)``: height above its group's minimum, that minimum, sum of heights, group size.

    Heights rather than values, because the mean of equal floats is not always that float: three times 0.1 sums to
    0.30000000000000004, and a difference of 1e-17 divided by a standard deviation of 1e-17 is a large advantage.
    """
    ids, index = group.unique(return_inverse=True)  # index (B,)
    present = ~values.isnan()
    empty = values.new_zeros(len(ids))
    size = empty.index_add(0, index, present.to(values.dtype)).clamp(min=1)
    infinite = torch.where(present, values, torch.full_like(values, torch.inf))
    lowest = torch.full_like(empty, torch.inf).scatter_reduce(0, index, infinite, "amin")
    lowest = torch.where(lowest.isinf(), torch.full_like(lowest, torch.nan), lowest)  # a group without any reward
    height = torch.where(present, values - lowest[index], torch.zeros_like(values))
    return height, lowest[index], empty.index_add(0, index, height)[index], size[index]


def kl_k1(logps: Tensor, reference: Tensor) -> Tensor:
    """Estimate KL(policy || reference) on tokens that the policy sampled: log p - log q. Unbiased, may be negative.

    Schulman 2020, http://joschu.net/blog/kl-approx.html. Any shape. As a loss its gradient is zero on average: use it
    in the reward.
    """
    return logps - reference


def kl_k3(logps: Tensor, reference: Tensor) -> Tensor:
    """Estimate KL(policy || reference) on tokens that the policy sampled: q/p - 1 - log(q/p). Never negative.

    Schulman 2020, http://joschu.net/blog/kl-approx.html. Any shape; unbiased, with less variance than k1. The
    exponential is clamped at e^20: one token that the policy all but excludes would make the loss infinite.
    """
    log_ratio = reference - logps
    return log_ratio.clamp(max=20).expm1() - log_ratio


def importance_ratio(log_ratio: Tensor) -> Tensor:
    """Return the ratio of probabilities from its logarithm, any shape, clamped to e^-20 and e^20.

    A sequence's ratio is a product over all its tokens: without the bound one outlier is infinite, and infinity times
    an advantage of 0 is NaN. Beyond the bound the gradient is zero.
    """
    return log_ratio.clamp(-20, 20).exp()


def clipped_surrogate(ratio: Tensor, advantages: Tensor, low: float, high: float, cap: float | None = None) -> Tensor:
    """Return the PPO objective as a loss: -min(ratio A, clip(ratio, 1 - low, 1 + high) A), in the broadcast shape.

    Schulman et al. 2017, arXiv:1707.06347 eq. 7. ``cap`` also bounds the ratio where the advantage is negative and the
    minimum alone would let it grow (arXiv:2505.07291; the same loss as dual clip, arXiv:1912.09729).
    """
    free = ratio if cap is None else ratio.clamp(max=cap)
    return -torch.minimum(free * advantages, ratio.clamp(1 - low, 1 + high) * advantages)


def token_entropy(logits: Tensor) -> Tensor:
    """Return the entropy in nats of each token's distribution: logits ``(n, V)`` to ``(n,)``, without gradient.

    log sum e^z - sum z e^z / sum e^z, with z the logits less their maximum. On a CPU a few rows at a time, which fit
    the cache: a fifth of the time of all at once.
    """
    rows = CACHED_ROWS if logits.device.type == "cpu" else max(1, len(logits))
    entropies = []
    for part in logits.detach().split(rows):
        shifted = (part - part.amax(-1, keepdim=True)).clamp_(min=-1e4)  # (r, V): e^-1e4 is 0; 0 times infinity is NaN
        exponentials = shifted.exp()
        sums = exponentials.sum(-1)  # (r,)
        entropies.append(sums.log() - exponentials.mul_(shifted).sum(-1) / sums)
    return torch.cat(entropies)  # (n,)


def generalised_jsd(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """Return the divergence of two distributions given as log-probs ``(n, K)``, in nats: ``(n,)``.

    beta KL(teacher || M) + (1 - beta) KL(student || M) with M = beta teacher + (1 - beta) student; at 0 it is
    KL(teacher || student), at 1 KL(student || teacher). Agarwal et al. 2023, arXiv:2306.13649, section 2.
    """
    if beta == 0:
        return kl_divergence(teacher, student)
    if beta == 1:
        return kl_divergence(student, teacher)
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log(1 - beta))  # (n, K)
    return beta * kl_divergence(teacher, mixture) + (1 - beta) * kl_divergence(student, mixture)


def kl_divergence(first: Tensor, second: Tensor) -> Tensor:
    """Return KL(first || second) = sum p (log p - log q) of log-probs ``(n, K)``: ``(n,)``. Both must be finite."""
    return (first.exp() * (first - second)).sum(-1)


def likeliest(student: Tensor, teacher: Tensor, count: int, tail: bool = False) -> tuple[Tensor, Tensor]:
    """Return log-probs ``(n, count)`` of both over the student's ``count`` likeliest tokens, from logits ``(n, V)``.

    They are normalised over these tokens; with ``tail`` a last column instead holds the probability of all other tokens
    together, ``(n, count + 1)``. With ``count`` 0, or at least V, every token is taken.
    """
    if not 0 < count < student.shape[-1]:
        return student.log_softmax(-1), teacher.log_softmax(-1)
    places = student.detach().topk(count, dim=-1).indices  # (n, count)
    return _among(student, places, tail), _among(teacher, places, tail)


def _among(logits: Tensor, places: Tensor, tail: bool) -> Tensor:
    """Return log-probs of the tokens at ``places`` ``(n, k)``; with ``tail``, in a last column, those of all others."""
    chosen = logits.gather(-1, places)  # (n, k)
    if tail:
        others = logits.scatter(-1, places, -torch.inf).logsumexp(-1, keepdim=True)  # (n, 1)
        chosen = torch.cat([chosen, others], -1)
    return chosen.log_softmax(-1)


def returns_to_go(rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """Sum each token's own and later rewards ``(B, T)``, discounted: G_t = r_t + gamma G_(t+1); 0 where masked."""
    rewards = torch.where(mask, rewards, torch.zeros_like(rewards))
    if gamma == 0:
        return rewards
    found, following = [], torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        following = rewards[:, t] + gamma * following  # (B,)
        found.append(following)
    return torch.stack(found[::-1], 1)


def span_logps(logits: Tensor, labels: Tensor, spans: Tensor, at_first: bool, count: int) -> Tensor:
    """Return log-distributions ``(S, V)`` of S = ``count`` spans, from logits ``(n, V)`` that predict ``labels``.

    ``labels`` is ``(n,)``; ``spans`` ``(n,)`` numbers the spans in order. A span's distribution is the one at its first
    (or last) token times the probabilities of its other tokens: at the actual text this is the probability of the whole
    span. Not normalised. Rows of spans without tokens are undefined.

    Source: GOLD (Patino et al. 2025), merge strategies "observed" and "bayesian".
    """
    logps = logits.gather(1, labels[:, None])[:, 0] - logits.logsumexp(1)  # (n,)
    places = torch.arange(len(spans), device=spans.device)
    base = places.new_zeros(count).scatter_reduce(0, spans, places, "amin" if at_first else "amax", include_self=False)
    if not len(spans):
        return logits.new_zeros(count, logits.shape[1])
    others = logps.new_zeros(count).index_add(0, spans, logps) - logps[base]  # (S,)
    return logits[base].log_softmax(1) + others[:, None]


def rank_distance(one: Tensor, other: Tensor) -> Tensor:
    """Sum ``(n,)`` the distances between the largest, the second largest, ... of two sets of numbers.

    ``(n, V)`` and ``(n, W)``; the smaller set is padded with 0. Boizard et al. 2024, arXiv:2402.12030, equation 4.
    """
    width = max(one.shape[1], other.shape[1])
    ranked = [F.pad(v.sort(1, descending=True).values, (0, width - v.shape[1])) for v in (one, other)]
    return (ranked[0] - ranked[1]).abs().sum(1)
