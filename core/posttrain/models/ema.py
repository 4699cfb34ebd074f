"""A second set of the policy's trained weights: their moving average, or a copy renewed at intervals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor, nn

from posttrain.models.frozen import Frozen
from posttrain.network.modes import evaluating

if TYPE_CHECKING:
    from posttrain.network.token_model import TokenModel


class EmaModel(Frozen):
    """The policy with averaged weights: every ``every`` steps ``average += rate * (policy - average)``.

    Only the trained weights are kept twice; a pass swaps them with the policy's own.
    """

    tokenizer = None

    def __init__(self, policy: TokenModel, rate: float, every: int = 1):
        """Set up the average; a ``rate`` of 1 makes it a copy."""
        self.policy, self.rate, self.every = policy, rate, every
        self.average: dict[str, Tensor] = {}

    def start(self) -> None:
        """Start as a copy of the policy's trained weights, on the policy's device."""
        self.average = {name: p.detach().clone() for name, p in self._trained()}

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self.policy.model.named_parameters() if p.requires_grad]

    @contextmanager
    def active(self) -> Iterator[TokenModel]:
        """Yield the policy with the averaged weights, in evaluation mode."""
        self._swap()
        try:
            with evaluating(self.policy):
                yield self.policy
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self._trained():
            parameter.data, self.average[name] = self.average[name], parameter.data

    def step_done(self, step: int) -> None:
        """Update the average if step number ``step``, counted from 1, is a multiple of ``every``."""
        if step % self.every:
            return
        for name, parameter in self._trained():
            self.average[name].lerp_(parameter.detach(), self.rate)

    def saved(self) -> dict[str, Tensor]:
        """Return the state for a checkpoint."""
        return self.average

    def restore(self, saved: dict[str, Tensor]) -> None:
        """Restore the state from ``saved``."""
        for name, tensor in saved.items():
            self.average[name].copy_(tensor)
