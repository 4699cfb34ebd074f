"""What loading, running and saving a model must know of how its weights are spread over processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

if TYPE_CHECKING:
    from posttrain.network.token_model import TokenModel


class Placement(Protocol):
    """The part of a hardware strategy that models need; every ``training.strategy.Strategy`` is one."""

    rank: int
    shards_forward: bool
    """Whether weights are spread, so that a forward or backward pass needs all ranks at the same time."""

    def prepare(self, model: TokenModel) -> None:
        """Place a model: afterwards all ranks have, or share, rank 0's weights."""

    def synchronised_passes(self, count: int) -> int:
        """Passes that this rank must make where it has work for ``count``: the most of any rank if ``together``."""

    def weights(self, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Name and whole tensor of each parameter of ``module``, one in memory at a time; all ranks iterate."""

    def gather(self, items: list[Any]) -> list[Any]:
        """All ranks' items, on every rank."""
