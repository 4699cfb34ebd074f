"""Location of a model's vocabulary projection, and what the family does to the logits after it."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from posttrain.errors import ModelError
from posttrain.network.chunked_head import Head

#: Config field of a family -> factor on the logits.
_FACTORS = {
    "logit_scale": lambda value: value,  # Cohere
    "logits_scaling": lambda value: 1.0 / value,  # Granite
    "lm_head_multiplier": lambda value: value,  # Falcon-H1
    "logits_mup_width_multiplier": lambda value: 1.0 / value,  # Inkling
}
#: Config fields that bound the logits: Gemma, RecurrentGemma, xLSTM.
_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")

#: Names of layers before a projection that are its siblings.
_BEFORE = ("lm_head", "generator_predictions")


def find_head(inner: Any) -> Head:
    """Find the head of a causal language model. ``probe.check_logits`` then verifies it on real logits."""
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
    caps = [cap for cap in (getattr(config, name, None) for name in _CAPS) if cap is not None]
    return Head(_whole(inner, projection), scale, caps[0] if caps else None)


def _whole(inner: Any, projection: Any) -> Any:
    """Return the projection with the layers before it: BERT's contain it, ModernBERT's and ELECTRA's are siblings."""
    embeddings = inner.get_input_embeddings()
    for part in inner.children():
        inside = list(part.modules())
        if part is not projection and projection in inside and embeddings not in inside:
            return part
    for name in _BEFORE:
        before = getattr(inner, name, None)
        if before is not None and projection not in before.modules():
            return nn.Sequential(cast("nn.Module", before), projection)
    return projection
