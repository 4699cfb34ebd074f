"""The longest row that a model with learnt positions can read, from its configuration alone."""

from __future__ import annotations

import contextlib
from typing import Any

import transformers

from posttrain.models import foreign
from posttrain.models.adapters import adapter_base
from posttrain.models.load import _source
from posttrain.settings import ModelSettings


def learnt_positions_of(model: str, settings: ModelSettings) -> int | None:
    """Learnt positions of the model in a folder or on the Hub; None also where its configuration cannot be read."""
    source, extra = _source(adapter_base(model) or model, settings)
    with contextlib.suppress(OSError, ValueError, ImportError):  # what cannot be read says so when it is loaded
        if "gguf_file" not in extra:
            return learnt_positions(foreign.read(transformers.AutoConfig, source, **extra))
    return None


def learnt_positions(config: Any) -> int | None:
    """Learnt positions in tokens; None for a model whose positions are computed, or that has none."""
    text = config.get_text_config()
    if getattr(text, "rope_parameters", None) is not None or getattr(text, "alibi", False):
        return None
    known = getattr(text, "max_position_embeddings", None)
    return int(known) if known and known > 0 else None
