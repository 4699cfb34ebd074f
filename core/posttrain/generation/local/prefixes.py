"""Prefix cache: keys and values of texts that later calls continue, such as the turns of an episode."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Prefix:
    """Keys and values of one text."""

    tokens: int
    """Number of tokens of the text."""
    layers: list[tuple[Tensor, Tensor]]
    """Keys and values ``(heads, c, d)`` of each layer, of the last ``c`` tokens."""
    windows: list[int | None]
    """Tokens that each layer sees; None for all."""
    factors: tuple[int, ...]
    """Rotary factors with which the text was read."""
    experts: Tensor | None = None
    """Experts ``(tokens, layers, choices)`` of its tokens, where they are recorded."""

    @property
    def whole(self) -> bool:
        """Whether every layer has all of its tokens, so that the prefix can be cut at the end."""
        return all(keys.size(1) == self.tokens for keys, _ in self.layers)


class Prefixes:
    """Cache of texts; the least recently used leave first.

    ``budget`` bounds their tokens; None is settled by ``afford``, once the size of a token is known.
    """

    def __init__(self, budget: int | None):
        """Start without texts."""
        self.budget = budget
        self.held = 0
        """Tokens of all texts."""
        self._texts: OrderedDict[bytes, Prefix] = OrderedDict()

    def afford(self, tokens: int | None) -> None:
        """Set the bound to ``tokens`` where no setting does."""
        if self.budget is None:
            self.budget = tokens

    def find(self, text: Tensor) -> Prefix | None:
        """Return the longest text that begins ``text`` ``(n,)``, as ``Sequence.content``; None where there is none."""
        if not self._texts:
            return None
        data, size = text.numpy().tobytes(), text.element_size()
        lengths = {prefix.tokens for prefix in self._texts.values()}
        for length in sorted((one for one in lengths if one < text.numel()), reverse=True):
            key = data[: length * size]
            if key in self._texts:
                self._texts.move_to_end(key)
                return self._texts[key]
        return None

    def wants(self, text: Tensor) -> bool:
        """Whether ``text`` should be kept: it is new, and no longer than the budget."""
        fits = self.budget is None or text.numel() <= self.budget
        return fits and text.numpy().tobytes() not in self._texts

    def keep(self, text: Tensor, prefix: Prefix, instead: Prefix | None = None) -> None:
        """Keep what was read of ``text``; it replaces ``instead``, the prefix that it continues."""
        for key in [key for key, other in self._texts.items() if other is instead]:
            self._drop(key)
        self._texts[text.numpy().tobytes()] = prefix
        self.held += prefix.tokens
        while self.budget is not None and self.held > self.budget:
            self._drop(next(iter(self._texts)))

    def _drop(self, key: bytes) -> None:
        self.held -= self._texts.pop(key).tokens

    def clear(self) -> None:
        """Drop all texts: the weights have changed, or the memory is needed."""
        self._texts.clear()
        self.held = 0

    def __len__(self) -> int:
        return len(self._texts)


def prefix_of(cache: Any, row: int, tokens: int, factors: tuple[int, ...]) -> Prefix:
    """Copy the last ``tokens`` columns of one row of a cache of transformers, or of a ``SlotCache``."""
    layers = []
    for layer in cache.layers:
        end = getattr(layer, "end", layer.keys.size(2))
        begin = end - min(tokens, getattr(layer, "held", end))
        layers.append((layer.keys[row, :, begin:end].clone(), layer.values[row, :, begin:end].clone()))
    windows = [getattr(layer, "sliding_window", getattr(layer, "window", None)) for layer in cache.layers]
    return Prefix(tokens, layers, windows, factors)
