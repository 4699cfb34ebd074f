"""Average of a policy's trained weights over the steps or checkpoints of a run, which may become its final model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from posttrain.network.token_model import TokenModel


class WeightAverage:
    """Trained weights averaged like torch's ``swa_utils``: the first is copied, later ones are mixed in.

    With a ``decay``: ``average = decay * average + (1 - decay) * weights``; without one the mean of all. Kept in
    float32 at least: in bfloat16 small contributions are lost.
    """

    def __init__(self, policy: TokenModel, decay: float | None = None):
        self.policy, self.decay, self.count = policy, decay, 0
        self.average: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self) -> None:
        """Mix in the policy's current weights."""
        self.count += 1
        for name, parameter in self.policy.named_parameters():
            if not parameter.requires_grad:
                continue
            value = parameter.detach()
            value = value if value.dtype == torch.float64 else value.float()
            if name not in self.average:
                self.average[name] = value.clone()
            else:
                self.average[name].lerp_(value, 1 / self.count if self.decay is None else 1 - self.decay)

    @torch.no_grad()
    def put(self) -> None:
        """Copy the average into the policy."""
        for name, parameter in self.policy.named_parameters():
            if name in self.average:
                parameter.copy_(self.average[name].to(parameter.dtype))

    def saved(self) -> dict[str, Tensor]:
        """Return the state for a checkpoint."""
        return {**self.average, "": torch.tensor(self.count)}

    def restore(self, saved: dict[str, Tensor]) -> None:
        """Restore the state from ``saved``."""
        self.count = int(saved.get("", torch.tensor(0)))
        devices = {name: parameter.device for name, parameter in self.policy.named_parameters()}
        self.average = {name: value.to(devices[name]) for name, value in saved.items() if name}
