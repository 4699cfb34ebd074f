"""Rotary factors that depend on the text's length: each row of a pass gets those that it would have alone.

transformers takes them from the longest row of a pass (Phi-3's "longrope": two sets, for texts up to and beyond the
original context; "dynamic": a set for each length beyond it), and "dynamic" keeps those of an earlier, longer pass. A
row's result would depend on its neighbours. Here the rotary module is called once for each kind of row.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import MethodType
from typing import Any

from torch import Tensor, nn


@dataclass
class Kind:
    """Rows of a pass with the same factors."""

    longest: int
    """Number of tokens of the longest row."""
    rows: Tensor
    """Indices of the rows in a padded batch, ``(k,)``."""
    places: Tensor | None = None
    """Indices of their tokens in a packed row, ``(n,)``."""


_kinds: ContextVar[list[Kind] | None] = ContextVar("kinds", default=None)
"""Kinds of the current pass."""


def find_scaled(model: nn.Module) -> tuple[nn.Module, ...]:
    """Find the rotary modules of ``model`` with length-dependent factors, and make them choose factors by row."""
    found = [module for module in model.modules() if any(kind in _SCALED for _, kind in _types(module))]
    for module in found:
        module.forward = MethodType(_by_kind, module)
    return tuple(found)


def factors_of(scaled: tuple[nn.Module, ...], length: int) -> tuple[int, ...]:
    """Return a key that is equal for texts with the same factors."""
    return tuple(
        _SCALED[kind](module, layer, length) for module in scaled for layer, kind in _types(module) if kind in _SCALED
    )


@contextmanager
def rows_of(kinds: list[Kind]) -> Iterator[None]:
    """Make rotary modules give each row the factors of its kind inside the block."""
    before = _kinds.set(kinds)
    try:
        yield
    finally:
        _kinds.reset(before)


def forget(module: Any) -> None:
    """Undo the changes of an earlier pass to a rotary module."""
    for layer, kind in _types(module):
        prefix = "" if layer is None else f"{layer}_"
        if kind == "dynamic":
            inverse = getattr(module, f"{prefix}original_inv_freq").to(getattr(module, f"{prefix}inv_freq").device)
            module.register_buffer(f"{prefix}inv_freq", inverse, persistent=False)
            setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)


def _types(module: Any) -> list[tuple[str | None, str]]:
    """Return kinds of layer (None for a single kind) and their types of factors."""
    kind = getattr(module, "rope_type", None)
    if not isinstance(module, nn.Module) or not hasattr(module, "original_max_seq_len"):
        return []
    if isinstance(kind, dict):
        return list(kind.items())
    return [(None, kind)] if isinstance(kind, str) else []


def _long(module: Any, layer: str | None, length: int) -> int:
    parameters = module.config.rope_parameters
    parameters = parameters if layer is None else parameters[layer]
    return int(length > parameters["original_max_position_embeddings"])


def _beyond(module: Any, layer: str | None, length: int) -> int:
    return length if length > module.original_max_seq_len else 0


_SCALED = {"longrope": _long, "dynamic": _beyond}


def _by_kind(self: Any, x: Tensor, position_ids: Tensor, **options: Any) -> Any:
    """Run the module's own forward pass once for each kind of row."""
    kinds, plain = _kinds.get(), type(self).forward
    if kinds is None:
        return plain(self, x, position_ids, **options)
    whole: list[Tensor] = []
    for kind in kinds:
        forget(self)
        if kind.places is not None:
            found = plain(self, x, position_ids[..., kind.places], **options)  # cosines and sines (1, n, d)
        else:
            own = position_ids if position_ids.shape[-2] == 1 else position_ids[..., kind.rows, :]
            found = plain(self, x, own[..., : kind.longest], **options)  # (1 or k, longest, d)
        parts = found if isinstance(found, tuple) else (found,)
        if not whole:
            rows = 1 if kind.places is not None else sum(len(one.rows) for one in kinds)
            whole = [part.new_zeros(rows, position_ids.shape[-1], *part.shape[2:]) for part in parts]
        for part, into in zip(parts, whole, strict=True):
            if kind.places is not None:
                into[:, kind.places] = part
            else:
                into[kind.rows, : kind.longest] = part
    return tuple(whole) if isinstance(found, tuple) else whole[0]
