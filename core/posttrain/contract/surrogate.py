"""Clipped policy gradient, the default loss of online methods, with its metrics.

Letters in shapes: B completions of the micro-batch, T tokens of the longest one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from posttrain.contract.tensors import clipped_surrogate, importance_ratio, kl_k3
from posttrain.contract.views import Batch, PerToken, Views

#: Default clip range of the ratio around 1 (Schulman et al. 2017, arXiv:1707.06347).
EPSILON = 0.2


def policy_loss(
    batch: Batch,
    policy: Views,
    config: Any = None,
    reference: Views | None = None,
    *,
    aggregation: str = "",
    log: tuple[str, ...] = (),
) -> tuple[Tensor | PerToken, dict[str, Any]]:
    """Return the clipped policy gradient of ``batch.advantages`` and its metrics: an unreduced loss.

    It reads these options where ``config`` has them: ``epsilon``, or ``epsilon_low`` and ``epsilon_high`` (None is the
    lower bound), how far a token's ratio to the sampling policy may leave 1 [0.2]; ``beta``, the weight of the
    divergence from the reference, where there is one [0]; ``aggregation``: "token" averages over all tokens of the
    step, "sequence" over each completion's tokens, then over completions [token]. The argument overrides the option.
    ``log`` names further columns of the batch that are logged, each ``(B,)`` or ``(B, T)``.
    """
    view = policy.completion
    advantages = batch.advantages.reshape(len(view.logps), -1).expand_as(view.logps)  # (B, T)
    low, high = clip_range(config)
    ratio = importance_ratio(view.logps - batch.old_logps)  # (B, T)
    loss = clipped_surrogate(ratio, advantages, low, high)  # (B, T)
    if "token_weights" in batch:
        loss = batch.token_weights * loss
    metrics: dict[str, Any] = {
        "ratio": ratio.detach(),
        "clip_low": ((ratio < 1 - low) & (advantages < 0)).to(ratio.dtype),
        "clip_high": ((ratio > 1 + high) & (advantages > 0)).to(ratio.dtype),
        "advantage_size": advantages.abs(),
    }
    beta = getattr(config, "beta", 0.0)
    if reference is not None and beta:
        kl = kl_k3(view.logps, reference.completion.logps)  # (B, T)
        loss = loss + beta * kl
        metrics["kl"] = kl.detach()
    metrics = {name: PerToken(values, view.mask) for name, values in metrics.items()} | logged(batch, view.mask, log)
    if (aggregation or getattr(config, "aggregation", "token")) == "sequence":
        return view.mean_of(loss), metrics
    return PerToken(loss, view.mask), metrics


def clip_range(config: Any) -> tuple[float, float]:
    """Return how far the ratio may fall below 1 and rise above it, from a method's options."""
    low = getattr(config, "epsilon_low", getattr(config, "epsilon", EPSILON))
    high = getattr(config, "epsilon_high", None)
    return low, low if high is None else high


def logged(batch: Batch, mask: Tensor, names: tuple[str, ...]) -> dict[str, Tensor | PerToken]:
    """Return columns of the batch as metrics: one value per completion or per token."""
    columns = {name: batch.columns[name] for name in names}
    return {name: PerToken(values, mask) if values.dim() == 2 else values for name, values in columns.items()}


def entropy_metric(policy: Any) -> dict[str, Tensor | PerToken]:
    """Return the mean entropy of the sampled tokens of all roles, in nats; empty where it was not computed."""
    views = [view for view in vars(policy).values() if "entropy" in vars(view)] if isinstance(policy, Views) else []
    if not views:
        return {}
    values = torch.cat([view.entropy.detach() for view in views], 1)  # (B, T of all roles)
    return {"entropy": PerToken(values, torch.cat([view.mask for view in views], 1))}
