"""Check that every trained tensor changes in the first steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from posttrain.models.finite import local_part

if TYPE_CHECKING:
    from posttrain.training.run import Compute

#: Steps with a learning rate above 0 before tensors are compared: an adapter's first matrix changes in the second.
STEPS = 3
#: Tensors of experts, which may get no tokens.
_EXPERTS = ".experts."
#: Numbers that are summed at a time: torch copies what it sums in another dtype, and a vocabulary would be the peak.
BLOCK = 2**20


class Movement:
    """Compares the sum of each trained tensor before the first step after a start and after three; no tensor is kept.

    The result is not in metrics.jsonl: a resumed run has the same lines as an uninterrupted one.
    """

    def __init__(self, compute: Compute):
        able = compute.policy.device.type != "mps"  # no float64 on mps
        self._before: dict[str, float] | None = _sums(compute.policy) if able else None
        self._steps = 0

    def after_step(self, compute: Compute, line: dict[str, Any]) -> dict[str, Any]:
        """Return, after the third step with a learning rate, the number of trained tensors and the unchanged ones."""
        if self._before is None:
            return {}
        self._steps += line["learning_rate"] > 0 and line["grad_norm"] > 0
        if self._steps < STEPS:
            return {}
        now = _sums(compute.policy)
        mine = {name: now[name] != was for name, was in self._before.items()}
        self._before = None
        everyone = compute.strategy.everyone(mine)  # a rank may hold an empty part of a tensor
        still = [name for name in mine if not any(moved.get(name, False) for moved in everyone)]
        return {"trained_tensors": len(mine), "unmoved_tensors": still}


@torch.no_grad()
def _sums(policy: nn.Module) -> dict[str, float]:
    """Sum each trained tensor's local part, in float64: any changed number changes it."""
    found = {}
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad and parameter.is_floating_point() and _EXPERTS not in name:
            blocks = local_part(parameter).flatten().split(BLOCK)
            found[name.removeprefix("model.")] = sum(float(block.sum(dtype=torch.float64)) for block in blocks)
    return found
