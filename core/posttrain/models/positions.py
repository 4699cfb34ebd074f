"""Longest row that a model with learnt positions can read, from its configuration alone."""

from __future__ import annotations

import contextlib
from typing import Any

import transformers

from posttrain.models import foreign
from posttrain.models.adapters import base_of
from posttrain.models.load import _source
from posttrain.settings import ModelSettings


def learnt_positions_of(model: str, settings: ModelSettings) -> int | None:
    """Return the learnt positions of a model in a folder or on the Hub; None also for an unreadable configuration."""
    with base_of(model) as base:
        source, extra = _source(base, settings)
    with contextlib.suppress(OSError, ValueError, ImportError):  # loading reports what cannot be read
        if "gguf_file" not in extra:
            return learnt_positions(foreign.read(transformers.AutoConfig, source, **extra))
    return None


def learnt_positions(config: Any) -> int | None:
    """Return learnt positions in tokens; None for a model with computed positions, or without any."""
    text = config.get_text_config()
    if getattr(text, "rope_parameters", None) is not None or getattr(text, "alibi", False):
        return None
    known = getattr(text, "max_position_embeddings", None)
    return int(known) if known and known > 0 else None
