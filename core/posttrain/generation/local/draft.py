"""Speculation of a run or a command, by its settings: the draft model is checked and loaded."""

from __future__ import annotations

from typing import Any

from posttrain.errors import ModelError
from posttrain.generation.local.prefill import Network
from posttrain.generation.local.speculation import Speculation
from posttrain.models.device import choose_device
from posttrain.models.load import load_module, load_tokenizer
from posttrain.settings import GenerationSettings, ModelSettings

#: Guessed tokens a pass where no option says.
USUAL = {"ngram": 8, "draft": 4}


def load_speculation(
    settings: GenerationSettings, loading: ModelSettings, tokenizer: Any, model: Any
) -> Speculation | None:
    """Build what the settings ask for, to sample from ``model``; None for "off".

    Raises ModelError for a draft model with other tokens, or none that is smaller.
    """
    kind, name = settings.speculate, settings.draft_model
    if kind == "off":
        return None
    tokens = USUAL[kind] if settings.speculate_tokens is None else settings.speculate_tokens
    if kind == "ngram" or name is None:  # the settings' own check has refused a draft without a name
        return Speculation("ngram", tokens)
    if load_tokenizer(name, loading).get_vocab() != tokenizer.get_vocab():
        raise ModelError(
            f"draft-model '{name}' has another tokeniser than the model, which cannot read its tokens. Choose a "
            "smaller model of the same family, or --speculate ngram."
        )
    module = load_module(name, loading, choose_device(loading), "vocabulary", None).requires_grad_(False).eval()
    sizes = [sum(weight.numel() for weight in one.parameters()) for one in (module, model)]
    if sizes[0] >= sizes[1]:
        raise ModelError(
            f"draft-model '{name}' has {sizes[0]:,} parameters and the model {sizes[1]:,}: a draft has to be smaller, "
            "or sampling gets slower. Choose one of a tenth or less, or --speculate ngram."
        )
    return Speculation("draft", tokens, Network(module), name)
