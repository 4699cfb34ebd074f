"""Windows and contexts of a few tokens during a check, so that short rows exceed them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

#: Fields of configurations and modules with a layer's window, in tokens.
_WINDOWS = ("sliding_window", "attention_chunk_size", "local_attention")
_CONTEXT = "original_max_position_embeddings"
_BOUND = "time_step_limit"
WINDOW, CONTEXT, STEP = 4, 12, 1.0


@contextmanager
def shrunk(inner: Any) -> Iterator[None]:
    """Give ``inner`` windows of 4 tokens, rotary factors that change at the 12th, and time steps at their bound."""
    undo: list[tuple[Any, str, Any]] = []
    try:
        for module in inner.modules():
            for holder in (module, getattr(module, "config", None)):
                for name in _WINDOWS:
                    _set(vars(holder) if holder is not None else {}, name, WINDOW, undo)
            _shrink_context(module, undo)
            _raise_bound(module, undo)
        yield
    finally:
        for fields, name, value in reversed(undo):
            fields[name] = value


def _shrink_context(module: Any, undo: list[tuple[Any, str, Any]]) -> None:
    """Shrink the context of modules with length-dependent factors."""
    kinds = getattr(module, "rope_type", None)
    kinds = kinds.values() if isinstance(kinds, dict) else [kinds]
    if "dynamic" in kinds:
        for name in ("original_max_seq_len", "max_seq_len_cached"):
            _set(vars(module), name, CONTEXT, undo)
        _set(vars(module.config), "max_position_embeddings", CONTEXT, undo)
    if "longrope" in kinds:
        parameters = module.config.rope_parameters
        for own in (vars(module.config), parameters, *parameters.values()):  # copied from the first again
            if isinstance(own, dict):
                _set(own, _CONTEXT, CONTEXT, undo)


def _raise_bound(module: Any, undo: list[tuple[Any, str, Any]]) -> None:
    """Raise the lower bound of a state space's time steps, which is rarely reached and which some decoding ignores."""
    limit = vars(module).get(_BOUND)
    if isinstance(limit, tuple | list) and limit[0] > 0:
        undo.append((vars(module), _BOUND, limit))
        vars(module)[_BOUND] = (STEP, limit[1])


def _set(fields: dict[str, Any], name: str, most: int, undo: list[tuple[Any, str, Any]]) -> None:
    value = fields.get(name)
    if isinstance(value, int) and not isinstance(value, bool) and value > most:
        undo.append((fields, name, value))
        fields[name] = most
