"""Sources of each optimiser step's examples. The order follows from seed and epoch alone, so nothing is stored."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, Protocol

import torch

from posttrain.contract.views import Example
from posttrain.errors import CheckpointError, DataError, SettingsError
from posttrain.settings import DataSettings, LengthSettings


class Source(Protocol):
    """Gives the examples of optimiser step ``number``, counted from 0, for all ranks."""

    def examples(self, number: int) -> list[Example]:
        """Return all examples of the global step."""

    def steps(self) -> int:
        """Return the optimiser steps of the whole run."""


class Order:
    """Indices of each step: every epoch is a permutation from the seed, its last batch possibly smaller (S9)."""

    def __init__(self, length: int, batch_size: int, shuffle: bool, seed: int):
        self.length, self.batch_size, self.shuffle, self.seed = length, batch_size, shuffle, seed
        self.per_epoch = math.ceil(length / batch_size)
        self._epoch: tuple[int, list[int]] = (-1, [])

    def at(self, number: int) -> list[int]:
        """Return the indices of batch ``number``."""
        epoch, place = divmod(number, self.per_epoch)
        if self._epoch[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            order = torch.randperm(self.length, generator=generator) if self.shuffle else torch.arange(self.length)
            self._epoch = (epoch, order.tolist())
        return self._epoch[1][place * self.batch_size : (place + 1) * self.batch_size]


def order_of(rows: int, data: DataSettings, length: LengthSettings) -> Order:
    """Build the order of ``rows`` rows from the batch size, the seed, and whether they are shuffled."""
    return Order(rows, length.batch_size, data.shuffle, data.seed)


def count_steps(per_epoch: int, settings: LengthSettings) -> int:
    """Return ``steps``, or the steps of ``epochs`` passes."""
    if settings.steps is not None:
        return settings.steps
    return max(1, math.ceil(per_epoch * settings.epochs))


class Offline:
    """A fixed dataset, tokenised before the run."""

    def __init__(self, data: Sequence[Example], order: Order, settings: LengthSettings):
        self.data, self.order, self.settings = data, order, settings

    def examples(self, number: int) -> list[Example]:
        """Return the step's examples."""
        return [self.data[i] for i in self.order.at(number)]

    def steps(self) -> int:
        """Return the steps from ``steps`` or ``epochs``."""
        return count_steps(self.order.per_epoch, self.settings)


class Stream:
    """Rows read during training; a resumed run reads those already used again and skips them.

    While a step computes, a thread reads and tokenises the rows of the next one.
    """

    def __init__(self, open_stream: Any, settings: LengthSettings):
        if settings.steps is None:
            raise SettingsError("Streaming does not know how many rows there are. Say how long to train: --steps N.")
        self.open_stream, self.settings = open_stream, settings
        self.next = 0
        self.iterator: Iterator[Example] | None = None
        self.reader = ThreadPoolExecutor(1, thread_name_prefix="posttrain-stream")
        self.ahead: Future[list[Example]] | None = None

    def examples(self, number: int) -> list[Example]:
        """Return the next batch; steps must be requested in order."""
        if self.iterator is None:
            self.iterator, self.next = self.open_stream(number * self.settings.batch_size), number
        if number != self.next:
            raise CheckpointError(f"The stream stands at step {self.next}, but step {number} was asked for.")
        self.next += 1
        batch = self._read() if self.ahead is None else self.ahead.result()
        self.ahead = self.reader.submit(self._read) if self.next < self.steps() else None
        if not batch:
            raise DataError(f"The data ended before step {number + 1}. Lower --steps, or train without --streaming.")
        return batch

    def _read(self) -> list[Example]:
        return list(islice(self.iterator or (), self.settings.batch_size))

    def steps(self) -> int:
        """Return the user's ``steps``."""
        assert self.settings.steps is not None
        return self.settings.steps
