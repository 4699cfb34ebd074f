"""A packed row cut over processes: each has a part of the tokens, and in attention some heads of all tokens.

Every layer but attention treats tokens one by one. Around attention an all-to-all (DeepSpeed-Ulysses, arXiv:2309.14509)
turns all heads of a part of the tokens into some heads of all tokens, and back. The kernel then sees the whole row, so
windows, sinks, packed texts and shared prompts are the same as in one process. Each process computes the results of its
own tokens, log-probs included; the numbers, not the states, are sent to the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers.integrations.sdpa_attention import repeat_kv

from posttrain.network.packing import PackedRow


@dataclass
class Context:
    """Rank and size of the ``group`` of processes that compute one row together."""

    group: dist.ProcessGroup
    rank: int
    size: int

    def padded(self, row: PackedRow) -> PackedRow:
        """Pad ``row`` by a separate text so that its length is a multiple of the number of processes."""
        missing = -len(row.ids) % self.size
        if not missing:
            return row
        ids = torch.cat([row.ids, row.ids.new_zeros(missing)])
        positions = torch.cat([row.positions, torch.arange(missing)])
        return PackedRow(ids, positions, [*row.lengths, missing], [*row.parents, -1], row.places)

    def part(self, count: int) -> slice:
        """Return the slice of this process's tokens in a row of ``count``."""
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def own(self, places: list[Tensor], count: int) -> list[Tensor]:
        """Select the tokens of this process, which has ``count``; return their indices among these."""
        start = self.rank * count
        return [place[(place >= start) & (place < start + count)] - start for place in places]

    def by_heads(self, attend: Callable[..., Tensor], states: list[Tensor], sinks: Tensor | None) -> Tensor:
        """Compute attention ``(1, n, heads, d)`` of this process's tokens by ``attend`` over all tokens of some heads.

        ``states`` are queries, keys and values ``(1, heads, n, d)`` of this process's tokens.
        """
        heads = states[0].shape[1]
        groups = heads // states[1].shape[1]
        if states[1].shape[1] % self.size:  # key heads that the processes do not divide: one per query head
            states = [states[0], *(repeat_kv(one, groups) for one in states[1:])]
        if sinks is not None:
            sinks = sinks.chunk(self.size)[self.rank]
        return self._to_tokens(attend(*(self._to_heads(one) for one in states), sinks))

    def _to_heads(self, states: Tensor) -> Tensor:
        """Exchange ``(1, heads, n, d)`` for ``(1, heads / size, size * n, d)``."""
        changed = _Exchange.apply(states[0].unflatten(0, (self.size, -1)), self.group)  # (size, heads / size, n, d)
        return changed.transpose(0, 1).flatten(1, 2)[None]

    def _to_tokens(self, mixed: Tensor) -> Tensor:
        """Exchange ``(1, size * n, heads / size, d)`` for ``(1, n, heads, d)``."""
        changed = _Exchange.apply(mixed[0].unflatten(0, (self.size, -1)), self.group)  # (size, n, heads / size, d)
        return changed.transpose(0, 1).flatten(1, 2)[None]

    def spread(
        self, places: Tensor, states: Tensor, compute: Callable[[Tensor, Tensor | slice], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Call ``compute`` for the tokens at ``places`` ``(k,)`` of the row, each on the process that has it.

        ``states`` ``(n, H)`` are this process's. ``compute`` takes states ``(m, H)`` and which of the k they are
        ``(m,)``, and returns tensors ``(m,)`` by name; a process without any takes part with the first.
        """
        count, start = len(places), self.rank * len(states)
        mine = ((places >= start) & (places < start + len(states))).nonzero()[:, 0]
        index = mine if len(mine) else mine.new_zeros(min(1, count))
        found = compute(states[(places[index] - start).clamp(0, len(states) - 1)], index)
        results = {}
        for name, values in found.items():
            whole = values.new_zeros(count)
            whole = whole.index_put((mine,), values) if len(mine) else whole + 0.0 * values.sum()
            results[name] = self.sum(whole)
        return results

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the processes. All compute the same loss from it, so each keeps the gradient of its own part."""
        return _Sum.apply(values, self.group)


class _Exchange(torch.autograd.Function):
    """Sends the i-th of ``size`` pieces to the i-th process; gradients return the same way."""

    @staticmethod
    def forward(ctx: Any, pieces: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        pieces = pieces.contiguous()
        changed = torch.empty_like(pieces)
        dist.all_to_all_single(changed, pieces, group=group)
        return changed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _Exchange.forward(ctx, gradients[0], ctx.group), None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, group: dist.ProcessGroup) -> Tensor:
        total = values.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None
