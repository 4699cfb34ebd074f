"""Placement of a model's weights over processes, as loading, running and saving it need it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

if TYPE_CHECKING:
    from posttrain.network.token_model import TokenModel


class Placement(Protocol):
    """The part of a strategy that models need; every ``training.strategy.Strategy`` is one."""

    rank: int
    shards_forward: bool
    """Whether weights are sharded, so that a forward or backward pass needs all ranks at the same time."""

    def prepare(self, model: TokenModel) -> None:
        """Place a model: afterwards all ranks have, or shard, rank 0's weights."""

    def synchronised_passes(self, count: int) -> int:
        """Return the passes that this rank must run for ``count``: with ``shards_forward`` the maximum of all ranks."""

    def weights(self, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Yield name and whole tensor of each parameter of ``module``, one in memory at a time; all ranks iterate."""

    def gather(self, items: list[Any]) -> list[Any]:
        """Return all ranks' items, on every rank."""
