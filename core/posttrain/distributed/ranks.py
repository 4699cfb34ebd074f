"""Communication between the processes of a run, whatever part of the model each has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from posttrain.distributed.world import join
from posttrain.training.reduction import Averages, Totals

if TYPE_CHECKING:
    from posttrain.settings import DistributedSettings, ModelSettings, OptimSettings


class Ranks:
    """Joins the launcher's process group: gloo on CPUs, NCCL on GPUs. Data are split into ``data_size`` parts.

    ``group`` are the ranks with one part each; None is all.
    """

    def __init__(self, distributed: DistributedSettings, model: ModelSettings, optim: OptimSettings):
        if not dist.is_initialized():
            join(model.device)
        self.rank = self.data_rank = dist.get_rank()
        self.world = self.data_size = dist.get_world_size()
        self.group: dist.ProcessGroup | None = None

    def scatter(self, items: list[Any]) -> list[Any]:
        """Return every ``data_size``-th item, starting at ``data_rank``."""
        return items[self.data_rank :: self.data_size]

    def gather(self, items: list[Any]) -> list[Any]:
        """Return all items in their first order; objects are pickled between our own processes."""
        parts = self._all_parts(items)
        merged = []
        for index in range(max(len(part) for part in parts)):
            merged += [part[index] for part in parts if index < len(part)]
        return merged

    def sum_totals(self, totals: Totals) -> Totals:
        """Sum counts by name over all parts; a part may lack names of another."""
        everyone = self._all_parts((totals.examples, totals.tokens))
        summed = Totals(sum(examples for examples, _ in everyone))
        for _, tokens in everyone:
            for name, count in tokens.items():
                summed.tokens[name] = summed.tokens.get(name, 0.0) + count
        return summed

    def sum_results(self, terms: dict[str, float], averages: Averages) -> tuple[dict[str, float], Averages]:
        """Sum by name, in whatever order a rank met the names (G17)."""
        summed_terms: dict[str, float] = {}
        summed = Averages()
        for their_terms, their_sums in self._all_parts((terms, averages.sums)):
            for name, value in their_terms.items():
                summed_terms[name] = summed_terms.get(name, 0.0) + value
            for name, (total, count) in their_sums.items():
                old_total, old_count = summed.sums.get(name, (0.0, 0.0))
                summed.sums[name] = (old_total + total, old_count + count)
        return summed_terms, summed

    def sum_number(self, value: float) -> float:
        """Sum one number over all parts."""
        return sum(self._all_parts(value))

    def everyone(self, item: Any) -> list[Any]:
        """Return the items of all ranks, also of those that share one part of the data."""
        items: list[Any] = [None] * self.world
        dist.all_gather_object(items, item)
        return items

    def barrier(self) -> None:
        """Wait for every rank."""
        dist.barrier()

    def _all_parts(self, item: Any) -> list[Any]:
        """Return each part's item, in their order."""
        items: list[Any] = [None] * self.data_size
        dist.all_gather_object(items, item, group=self.group)
        return items
