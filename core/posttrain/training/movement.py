"""Whether every tensor that is meant to train moves in the first steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from posttrain.training.finite import local_part

if TYPE_CHECKING:
    from posttrain.training.run import Run

#: Steps with a learning rate above 0 after which tensors are compared: an adapter's first matrix moves in the second.
STEPS = 3
#: Tensors of experts, which no token need be sent to.
_EXPERTS = ".experts."


class Movement:
    """Compares sums over each trained tensor before a start's first step and after three; no tensor is kept.

    What it finds stands in no line of metrics.jsonl: a resumed run has the lines of one that nobody disturbed.
    """

    def __init__(self, run: Run):
        able = run.compute.policy.device.type != "mps"  # which has no float64
        self._before: dict[str, float] | None = _sums(run) if able else None
        self._steps = 0

    def after_step(self, run: Run, line: dict[str, Any]) -> dict[str, Any]:
        """After the third step that had a learning rate: how many tensors are trained, and which of them stayed."""
        if self._before is None:
            return {}
        self._steps += line["learning_rate"] > 0 and line["grad_norm"] > 0
        if self._steps < STEPS:
            return {}
        now = _sums(run)
        mine = {name: now[name] != was for name, was in self._before.items()}
        self._before = None
        everyone = run.compute.strategy.everyone(mine)  # a rank may hold an empty part of a tensor
        still = [name for name in mine if not any(moved.get(name, False) for moved in everyone)]
        return {"trained_tensors": len(mine), "unmoved_tensors": still}


@torch.no_grad()
def _sums(run: Run) -> dict[str, float]:
    """Sum of each trained tensor's local part, in float64: any change of a number changes it."""
    found = {}
    for name, parameter in run.compute.policy.named_parameters():
        if parameter.requires_grad and parameter.is_floating_point() and _EXPERTS not in name:
            found[name.removeprefix("model.")] = float(local_part(parameter).sum(dtype=torch.float64))
    return found
