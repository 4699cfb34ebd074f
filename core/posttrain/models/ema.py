"""A second set of the policy's trained weights that follows them: as an average, or as a copy renewed now and then."""

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
    """The policy with other weights: every ``every`` steps ``average += rate * (policy - average)``.

    Only the trained weights are kept twice; for a pass they change places with the policy's own.
    """

    tokenizer = None

    def __init__(self, policy: TokenModel, rate: float, every: int = 1):
        """A ``rate`` of 1 copies the policy whenever it is due."""
        self.policy, self.rate, self.every = policy, rate, every
        self.average: dict[str, Tensor] = {}

    def start(self) -> None:
        """Be the policy as it is now, placed where it will be trained."""
        self.average = {name: p.detach().clone() for name, p in self._trained()}

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self.policy.model.named_parameters() if p.requires_grad]

    @contextmanager
    def active(self) -> Iterator[TokenModel]:
        """The policy with the averaged weights, in evaluation mode."""
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
        """Follow the policy where step number ``step``, counted from 1, is one of those."""
        if step % self.every:
            return
        for name, parameter in self._trained():
            self.average[name].lerp_(parameter.detach(), self.rate)

    def saved(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return self.average

    def restore(self, saved: dict[str, Tensor]) -> None:
        """Undo ``saved``."""
        for name, tensor in saved.items():
            self.average[name].copy_(tensor)
