"""Cache of keys and values of a batch that rows leave and join at any step.

Rows are aligned at their last token, with padding on the left, as transformers' masks expect. The tensors have room
for more rows and more columns: a new token is written in place, a row that leaves is overwritten by the last one, and
a row that joins is copied next to the others. Only when the room on the right is used up is the whole cache copied.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from posttrain.generation.local.prefixes import Prefix

#: Spare columns after a copy of the cache: at least this many, at least this share of those in use.
ROOM, ROOM_SHARE = 32, 1 / 4

#: Share of the memory for keys and values where no setting bounds the cached tokens.
MEMORY_SHARE = 1 / 4


class SlotLayer(CacheLayerMixin):
    """One layer's keys and values ``(rows, heads, columns, d)``, of which ``held`` columns up to ``end`` are in use."""

    keys: Tensor
    values: Tensor

    def __init__(self, window: int | None):
        """Start an empty layer. ``window``: tokens that a sliding layer sees, the newest included; None for all."""
        super().__init__()
        self.window = window
        self.is_sliding = window is not None
        self.rows = 0
        self.width = 0
        """Columns of the whole batch, those outside the window included."""
        self.end = 0
        self.first = 0
        """First column that still has its states, of those in use when ``reserve`` was called."""

    @property
    def held(self) -> int:
        """Columns in use."""
        return self.width if self.window is None else min(self.width, self.window - 1)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take over types and sizes; allocate nothing yet."""
        # Stale columns are masked, and 0 times the contents of uninitialised memory is not 0.
        self.keys = key_states.new_zeros(0, key_states.size(1), 0, key_states.size(3))
        self.values = value_states.new_zeros(0, value_states.size(1), 0, value_states.size(3))
        self.is_initialized = True

    def add(self, source: DynamicLayer, index: Tensor, columns: int, capacity: int) -> None:
        """Append rows ``index`` ``(k,)`` of ``source``, each with its last ``columns`` columns.

        ``capacity`` is the largest number of rows that may be in use.
        """
        assert source.keys is not None
        assert source.values is not None
        if not self.is_initialized:
            self.lazy_initialization(source.keys, source.values)
        width = max(self.width, columns)
        left = width if self.window is None else min(width, self.window - 1)
        rows = self.rows + index.numel()
        if self.keys.size(0) < rows or self.end < left:
            self._move(max(rows, capacity), left)
        states = min(columns, source.keys.size(2), left)
        if states:
            place = (slice(self.rows, rows), slice(None), slice(self.end - states, self.end))
            self.keys[place] = source.keys[:, :, -states:].index_select(0, index)
            self.values[place] = source.values[:, :, -states:].index_select(0, index)
        self.rows, self.width = rows, width

    def fill(self, texts: list[tuple[Tensor, Tensor]], width: int, new: int) -> None:
        """Set rows to keys and values ``(heads, c, d)``, aligned at ``width``, with room for ``new`` columns."""
        keys, values = texts[0]
        self.rows, self.width = len(texts), width
        self.end = self.held
        self.keys = keys.new_zeros(self.rows, keys.size(0), self.end + new, keys.size(2))
        self.values = values.new_zeros(self.rows, values.size(0), self.end + new, values.size(2))
        self.is_initialized = True
        for row, (keys, values) in enumerate(texts):
            states = min(keys.size(1), self.end)
            place = (row, slice(None), slice(self.end - states, self.end))
            self.keys[place] = keys[:, keys.size(1) - states :]
            self.values[place] = values[:, values.size(1) - states :]

    def shrink(self, to: Tensor, source: Tensor, rows: int, width: int) -> None:
        """Copy rows ``source`` ``(k,)`` over rows ``to`` ``(k,)``, then keep the first ``rows``, ``width`` columns."""
        if to.numel():
            used = slice(self.end - self.held, self.end)
            self.keys[to, :, used] = self.keys[source, :, used]
            self.values[to, :, used] = self.values[source, :, used]
        self.rows, self.width = rows, width

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new tokens' states ``(rows, heads, t, d)``; return all that these tokens may see."""
        new, held = key_states.size(2), self.held
        if self.end + new > self.keys.size(2):
            self._move(self.keys.size(0), held, new)
        begin, middle, self.end = self.end - held, self.end, self.end + new
        self.width += new
        self.keys[: self.rows, :, middle : self.end] = key_states
        self.values[: self.rows, :, middle : self.end] = value_states
        return self.keys[: self.rows, :, begin : self.end], self.values[: self.rows, :, begin : self.end]

    def reserve(self, new: int) -> None:
        """Make room for ``new`` columns that ``cut`` may take back: those that leave the window stay until then."""
        if self.end + new > self.keys.size(2):
            self._move(self.keys.size(0), self.held, new)
        self.first = self.end - self.held

    def cut(self, columns: int) -> None:
        """Take back the newest columns."""
        self.end -= columns
        self.width -= columns

    def align(self, rows: Tensor, order: Tensor) -> None:
        """Reorder the columns of ``rows`` ``(k,)``: theirs become the old ones ``order`` ``(k, new width)``."""
        first = self.end - self.width if self.window is None else self.first
        dropped = self.width - (self.end - first)  # columns outside the window that have no states any more
        self.width = order.size(1)
        order = (order[:, self.width - self.held :] - dropped).clamp(min=0) + first  # (k, held)
        to = torch.arange(self.end - self.held, self.end, device=order.device)[None]  # (1, held)
        for states in (self.keys, self.values):
            states[rows[:, None], :, to] = states[rows[:, None], :, order]

    def _move(self, rows: int, left: int, new: int = 0) -> None:
        """Copy the columns in use into new tensors, the last one at ``left``, with room for ``new`` ones and more."""
        columns = left + max(ROOM, int(left * ROOM_SHARE), new)
        held = slice(self.end - self.held, self.end)
        for name in ("keys", "values"):
            old = getattr(self, name)
            fresh = old.new_zeros(rows, old.size(1), columns, old.size(3))
            fresh[: self.rows, :, left - self.held : left] = old[: self.rows, :, held]
            setattr(self, name, fresh)
        self.end = left

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of columns that ``update`` returns for so many new tokens, and the index of the first."""
        return self.held + query_length, self.width - self.held

    def get_seq_length(self) -> int:
        """Return the number of columns so far."""
        return self.width

    def get_max_length(self) -> int:
        """Return the length limit; -1 for none."""
        return -1 if self.window is None else self.window


class SlotCache(Cache):
    """Cache of all layers of one model."""

    def __init__(self, windows: list[int | None]):
        """Create one layer per window: tokens that it sees, the newest included; None for all."""
        self.slots = [SlotLayer(window) for window in windows]
        super().__init__(layers=list(self.slots))

    @classmethod
    def like(cls, cache: Any) -> SlotCache:
        """Create an empty cache with the kinds of layers of ``cache``, a ``joinable`` one or a SlotCache."""
        return cls([getattr(layer, "sliding_window", getattr(layer, "window", None)) for layer in cache.layers])

    @classmethod
    def of(cls, prefixes: list[Prefix], used: list[int], new: int) -> SlotCache:
        """Build a cache with the first ``used`` tokens of each prefix as a row, and room for ``new`` columns."""
        cache = cls(prefixes[0].windows)
        for number, slot in enumerate(cache.slots):
            rows = []
            for prefix, tokens in zip(prefixes, used, strict=True):
                keys, values = prefix.layers[number]
                left = keys.size(1) - (prefix.tokens - tokens)
                rows.append((keys[:, :left], values[:, :left]))
            slot.fill(rows, max(used), new)
        return cache

    def add(self, source: Any, index: Tensor, columns: int, capacity: int) -> None:
        """Call ``SlotLayer.add`` on every layer."""
        for layer, other in zip(self.slots, source.layers, strict=True):
            layer.add(other, index, columns, capacity)

    @property
    def windowed(self) -> bool:
        """Whether a layer has a sliding window, which counts columns."""
        return any(layer.window is not None for layer in self.slots)

    def reserve(self, new: int) -> None:
        """Call ``SlotLayer.reserve`` on every layer."""
        for layer in self.slots:
            layer.reserve(new)

    def cut(self, columns: int) -> None:
        """Call ``SlotLayer.cut`` on every layer."""
        for layer in self.slots:
            layer.cut(columns)

    def align(self, rows: Tensor, order: Tensor) -> None:
        """Call ``SlotLayer.align`` on every layer."""
        for layer in self.slots:
            layer.align(rows, order)

    def shrink(self, to: Tensor, source: Tensor, rows: int, width: int) -> None:
        """Call ``SlotLayer.shrink`` on every layer."""
        for layer in self.slots:
            layer.shrink(to, source, rows, width)


def joinable(cache: Any) -> bool:
    """Whether rows of ``cache`` can join a ``SlotCache``: attention layers alone, full or with a sliding window."""
    return type(cache) is DynamicCache and all(
        type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) and getattr(layer, "keys", None) is not None
        for layer in cache.layers
    )


def affordable_tokens(cache: Any, device: torch.device) -> int | None:
    """Return how many tokens' keys and values fit a quarter of the memory; None where ``cache`` hides their size.

    It depends on the machine alone, not on free memory: the same run batches the same way again.
    """
    states = [getattr(layer, name, None) for layer in getattr(cache, "layers", ()) for name in ("keys", "values")]
    each = sum(state[0, :, 0].nbytes for state in states if isinstance(state, Tensor) and state.dim() == 4)
    if not each:
        return None
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return int(memory * MEMORY_SHARE) // each
