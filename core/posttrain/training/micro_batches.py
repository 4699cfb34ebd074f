"""Micro-batches of an optimiser step, and the batch that a method sees of one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from posttrain.contract.pad import pad_tokens, roles_of, sequences_of, texts_of, token_mask
from posttrain.contract.views import Batch, Example, Sequence
from posttrain.network.packing import PackedCost


def token_budget(asked: int | None, device: torch.device, groups: bool, narrow: bool = False) -> int:
    """Return the tokens of a forward pass: as requested, else enough to keep the device busy.

    A CPU is as fast with 512 tokens as with more, within a few percent (docs/memory-and-speed.md), and holds half the
    activations of 1,024.
    Where ``groups`` of rows share their prompts, a smaller pass would compute them again; in bfloat16 (``narrow``), a
    token takes half the memory, and the weights are rounded once a pass.
    """
    if asked is not None:
        return asked
    if device.type != "cpu":
        return 16384
    return 1024 if groups or narrow else 512


def micro_batches(
    examples: list[Example], tokens: int, size: int | None, packed: bool, shared: bool = False
) -> Iterator[list[Example]]:
    """Split a step's examples into forward passes of at most ``tokens`` tokens (or exactly ``size`` examples).

    Without packing, examples of similar length share a pass, which reduces padding. An example longer than the budget
    gets a pass of its own. Reduction is exact, so neither order nor split changes the gradient.
    """
    if size is not None:
        for start in range(0, len(examples), size):
            yield examples[start : start + size]
        return
    ordered = examples if packed else sorted(examples, key=_longest)
    current: list[Example] = []
    cost: PackedCost | PaddedCost = PackedCost(shared) if packed else PaddedCost()
    for example in ordered:
        rows = texts_of(sequences_of([example]))
        if cost.add(rows) > tokens and current:
            yield current
            current, cost = [], PackedCost(shared) if packed else PaddedCost()
            cost.add(rows)
        current.append(example)
    if current:
        yield current


def _longest(example: Example) -> int:
    return max(len(s) for s in texts_of(sequences_of([example])))


class PaddedCost:
    """Tokens of the sequences added so far when padded to the longest."""

    def __init__(self) -> None:
        self.rows = self.longest = 0

    def add(self, sequences: list[Sequence]) -> int:
        """Add sequences; return the tokens of all together."""
        self.rows += len(sequences)
        self.longest = max(self.longest, *(len(s) for s in sequences))
        return self.rows * self.longest


def build_batch(examples: list[Example], device: torch.device) -> tuple[Batch, dict[str, Tensor]]:
    """Build the columns of a micro-batch; return them and those per-token columns that are masks, by name.

    A column needs a value in every example: numbers and booleans become tensors ``(B,)``, numbers of a row's several
    answers ``(B, K)``, tensors of a rollout are stacked, the rest are lists. Per-token columns are padded to ``(B,
    T)``.
    """
    columns: dict[str, Any] = {}
    for name in examples[0].columns:
        if all(name in e.columns for e in examples):
            values = [e.columns[name] for e in examples]
            several = _of_answers(values, examples)
            columns[name] = _answers(values, device) if several else _column(values, device)
    masks: dict[str, Tensor] = {}
    for role in roles_of(examples):
        sequences = [s for e in examples for s in e.sequences[role]]
        mask = token_mask([s.count for s in sequences])
        for name in sequences[0].per_token if sequences else ():
            padded = pad_tokens(torch.cat([s.per_token[name] for s in sequences]), mask).to(device)  # (B, T)
            columns[name] = padded
            if padded.dtype == torch.bool:
                masks[name] = padded
    return Batch(len(examples), columns), masks


def _of_answers(values: list[Any], examples: list[Example]) -> bool:
    """Return whether each value is a list of numbers, one for each of a row's several answers."""
    counts = [len(e.sequences[roles_of(examples)[0]]) for e in examples]
    return max(counts) > 1 and all(
        isinstance(value, list) and len(value) == count and all(isinstance(one, int | float) for one in value)
        for value, count in zip(values, counts, strict=True)
    )


def _answers(values: list[list[float]], device: torch.device) -> Tensor:
    """Return ``(B, K)``, zero after the last answer of a row with fewer."""
    rows = [torch.tensor(value, dtype=torch.float32) for value in values]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)


def _column(values: list[Any], device: torch.device) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        return torch.stack(values).to(device)
    if all(isinstance(v, bool) for v in values):
        return torch.tensor(values, device=device)
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        return torch.tensor(values, dtype=torch.float32, device=device)
    return values
