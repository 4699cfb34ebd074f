"""Every process holds the whole model and a share of the examples; gradients are added up once per step.

No wrapper is needed: the loss shares already carry global denominators, so the step's gradient is the plain sum.
"""

from __future__ import annotations

import datetime
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from posttrain.engine.reduction import Averages, Totals
from posttrain.strategies.protocol import norm_of

#: Gradients travel in pieces of this many numbers.
BUCKET = 25_000_000


class DistributedData:
    """Joins the process group of its launcher: gloo on CPUs, NCCL on GPUs."""

    name = "ddp"

    def __init__(self) -> None:
        if not dist.is_initialized():
            backend = "nccl" if torch.cuda.is_available() else "gloo"
            if backend == "nccl":
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
            dist.init_process_group(backend, timeout=datetime.timedelta(minutes=30))
        self.rank = dist.get_rank()
        self.world = dist.get_world_size()

    def prepare(self, model: nn.Module) -> None:
        """Rank 0's weights and buffers, on every rank."""
        for tensor in [*model.parameters(), *model.buffers()]:
            dist.broadcast(tensor.data, 0)

    def share(self, items: list[Any]) -> list[Any]:
        """Every ``world``-th item from ``rank`` on."""
        return items[self.rank :: self.world]

    def gather(self, items: list[Any]) -> list[Any]:
        """All items in their first order; objects travel through pickle between our own processes."""
        parts: list[Any] = [None] * self.world
        dist.all_gather_object(parts, items)
        merged = []
        for index in range(max(len(part) for part in parts)):
            merged += [part[index] for part in parts if index < len(part)]
        return merged

    def sum_totals(self, totals: Totals) -> Totals:
        """Counts by name over all ranks; a rank may lack names that another has."""
        everyone = _everyone((totals.examples, totals.tokens), self.world)
        summed = Totals(sum(examples for examples, _ in everyone))
        for _, tokens in everyone:
            for name, count in tokens.items():
                summed.tokens[name] = summed.tokens.get(name, 0.0) + count
        return summed

    def sum_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Flat buckets, so that a small model costs one message; a rank without examples adds zeros (D1)."""
        for bucket in _buckets(parameters):
            flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in bucket])
            dist.all_reduce(flat)
            start = 0
            for p in bucket:
                p.grad = flat[start : start + p.numel()].view_as(p).clone()
                start += p.numel()

    def gradient_norm(self, parameters: list[nn.Parameter]) -> float:
        """The same on every rank, since the summed gradient is."""
        return norm_of([p.grad for p in parameters if p.grad is not None])

    def sum_results(self, terms: dict[str, float], averages: Averages) -> tuple[dict[str, float], Averages]:
        """By name, whatever order a rank met the names in (G17)."""
        everyone = _everyone((terms, averages.sums), self.world)
        summed_terms: dict[str, float] = {}
        summed = Averages()
        for their_terms, their_sums in everyone:
            for name, value in their_terms.items():
                summed_terms[name] = summed_terms.get(name, 0.0) + value
            for name, (total, count) in their_sums.items():
                old_total, old_count = summed.sums.get(name, (0.0, 0.0))
                summed.sums[name] = (old_total + total, old_count + count)
        return summed_terms, summed

    def sum_number(self, value: float) -> float:
        """One number over all ranks."""
        return sum(_everyone(value, self.world))

    def barrier(self) -> None:
        """Wait for every rank."""
        dist.barrier()


def _everyone(item: Any, world: int) -> list[Any]:
    parts: list[Any] = [None] * world
    dist.all_gather_object(parts, item)
    return parts


def _buckets(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    buckets: list[list[nn.Parameter]] = []
    size = BUCKET + 1
    for parameter in parameters:
        if size + parameter.numel() > BUCKET or buckets[-1][0].dtype != parameter.dtype:
            buckets.append([])
            size = 0
        buckets[-1].append(parameter)
        size += parameter.numel()
    return buckets
