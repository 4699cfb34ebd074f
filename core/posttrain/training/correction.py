"""Differences between sampler and trainer log-probs, and importance weights that correct for them.

A token was sampled by weights that may be older than the trainer's, or by an engine that rounds otherwise. Its weight
is the ratio of its probability under the policy at the start of the step's updates to that under the sampler, truncated
or masked. The gradient of a token's log-prob and token statistics is multiplied by its weight: for a loss that is a sum
over tokens this is the weighted loss, and a loss defined on whole answers or on pairs needs no code for it. Values and
denominators of the loss do not change.

Truncated: Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training". Masked: IcePop,
arXiv:2510.18855; the sequence's own ratio: Liu et al. 2025, "When speed kills stability". There only the policy's term
is weighted; here every gradient through a sampled token's log-prob (a KL penalty) is weighted with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from posttrain.contract.pad import pad_tokens
from posttrain.contract.tensors import importance_ratio
from posttrain.contract.views import Example, View, Views
from posttrain.errors import SettingsError

if TYPE_CHECKING:
    from posttrain.settings import CorrectionSettings
    from posttrain.training.reduction import Averages
    from posttrain.training.run import Compute

#: Log-prob differences above this count as large.
FAR = 0.1
#: Preset for runs that need a correction and name none.
USUAL = "truncated-token"


@dataclass(frozen=True)
class Correction:
    """A preset that truncates or masks ratios of tokens, or of whole answers, outside ``low`` to ``high``."""

    preset: str
    low: float
    high: float

    def weights(self, log_ratio: Tensor, mask: Tensor) -> Tensor:
        """Return weights ``(R, T)`` from the log-ratio of trainer to sampler ``(R, T)``; 1 where ``mask`` is False."""
        log_ratio = torch.where(mask, log_ratio, torch.zeros_like(log_ratio))
        if self.preset.endswith("-sequence"):
            log_ratio = log_ratio.sum(-1, keepdim=True).expand_as(log_ratio)
        ratio = importance_ratio(log_ratio)
        if self.preset.startswith("truncated-"):
            ratio = ratio.clamp(max=self.high)
        else:
            ratio = torch.where((ratio >= self.low) & (ratio <= self.high), ratio, torch.zeros_like(ratio))
        return torch.where(mask, ratio, torch.ones_like(ratio))


def choose_correction(settings: CorrectionSettings, needed: bool) -> Correction | None:
    """Choose the correction of a run; ``needed`` where sampler and trainer may differ. Raises SettingsError."""
    low, high = settings.correction_low, settings.correction_high
    if not 0 <= low < 1 < high:
        raise SettingsError(
            f"correction-low is {low} and correction-high {high}. Ratios lie around 1: expected 0 <= low < 1 < high."
        )
    preset = settings.correction or (USUAL if needed else "off")
    return None if preset == "off" else Correction(preset, low, high)


def correct(
    compute: Compute, examples: list[Example], policy: Views, averages: Averages, extremes: list[float]
) -> None:
    """Compare sampler and trainer log-probs in every sampled role, and weight the gradients there.

    ``averages`` collect metrics of the micro-batch's tokens; ``extremes`` is [largest difference, smallest ratio,
    largest ratio] so far, or empty. Tokens sampled by others, or without known log-probs, do not count.
    """
    for role, view in vars(policy).items():
        rows = [(s, e.columns.get("source", "policy")) for e in examples for s in e.sequences[role]]
        if not rows or not all("sampled_logps" in s.per_token for s, _ in rows):
            continue
        device = view.mask.device
        sampled = pad_tokens(torch.cat([s.per_token["sampled_logps"] for s, _ in rows]).to(device), view.mask)  # (R, T)
        now = view.logps.detach()
        if all("old_logps" in s.per_token for s, _ in rows):  # a later update over the same rollouts
            now = pad_tokens(torch.cat([s.per_token["old_logps"] for s, _ in rows]).to(device), view.mask)
        own = torch.tensor([who == "policy" for _, who in rows], device=device)  # (R,)
        known = view.mask & own[:, None] & ~sampled.isnan()  # (R, T)
        log_ratio = torch.where(known, now - sampled, torch.zeros_like(now))
        _watch(log_ratio[known].double(), averages, extremes)
        if compute.correction is not None:
            weights = compute.correction.weights(log_ratio, known)  # (R, T)
            averages.add({"sampler_weight": weights[known], "sampler_weight_zero": (weights[known] == 0).double()})
            _weight(view, weights, {name for name, _ in compute.policy.extra.named_children()})


def _watch(log_ratio: Tensor, averages: Averages, extremes: list[float]) -> None:
    """Add the log-ratios ``(n,)`` of counted tokens to the metrics."""
    if not log_ratio.numel():
        return
    gap, ratio = log_ratio.abs(), importance_ratio(log_ratio)  # (n,)
    averages.add(
        {
            "sampler_difference": gap,
            "sampler_difference_share": (gap > FAR).double(),
            "sampler_ratio": ratio,
            "sampler_ratio_squared": ratio.square(),
        }
    )
    found = [float(gap.max()), float(ratio.min()), float(ratio.max())]
    if extremes:
        found = [max(found[0], extremes[0]), min(found[1], extremes[1]), max(found[2], extremes[2])]
    extremes[:] = found


def _weight(view: View, weights: Tensor, extras: set[str]) -> None:
    """Multiply the gradients of each token's log-prob and statistics; values stay bit-identical."""
    for name, values in vars(view).items():
        fits = isinstance(values, Tensor) and values.requires_grad and values.shape == weights.shape
        if fits and name not in extras:  # a value head estimates an answer's return, whoever sampled it
            still = values.detach()
            setattr(view, name, still + weights * (values - still))


def summary(metrics: dict[str, float], extremes: list[list[float]]) -> dict[str, float]:
    """Return the metrics of the log, from the averages of all ranks and the extremes of each."""
    squared = metrics.pop("sampler_ratio_squared", None)
    if squared is None:
        return metrics
    found: dict[str, Any] = {"sampler_effective_share": metrics["sampler_ratio"] ** 2 / squared}
    found["sampler_difference_max"] = max(one[0] for one in extremes if one)
    found["sampler_ratio_min"] = min(one[1] for one in extremes if one)
    found["sampler_ratio_max"] = max(one[2] for one in extremes if one)
    return metrics | found
