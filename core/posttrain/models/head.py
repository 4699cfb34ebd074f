"""Where a model's vocabulary projection is, and what the family does to the logits after it."""

from __future__ import annotations

from typing import Any

from posttrain.engine.head import Head
from posttrain.errors import ModelError

#: Field of a family's config -> how it changes the logits.
_FACTORS = {
    "logit_scale": lambda value: value,  # Cohere
    "logits_scaling": lambda value: 1.0 / value,  # Granite
    "lm_head_multiplier": lambda value: value,  # Falcon-H1
}


def find_head(inner: Any) -> Head:
    """The head of a causal language model. ``probe.check_logits`` then proves it on real logits."""
    projection = inner.get_output_embeddings()
    if projection is None:
        raise ModelError(
            f"{type(inner).__name__} has no vocabulary projection. "
            "Expected a causal language model (AutoModelForCausalLM)."
        )
    config = inner.config.get_text_config()
    scale = 1.0
    for name, factor in _FACTORS.items():
        value = getattr(config, name, None)
        if value is not None:
            scale *= factor(float(value))
    return Head(projection, scale, getattr(config, "final_logit_softcapping", None))
