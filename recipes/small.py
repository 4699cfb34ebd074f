"""The small models of recipes: made of their configurations, and taught a little before the recipe begins."""

from __future__ import annotations

import json
import string
import sys
from pathlib import Path
from typing import Any

import posttrain
from posttrain.example.model import character_tokenizer, small_model

#: Characters of the small models' texts.
CHARACTERS = string.ascii_letters + string.digits + " .,:?+-*=\n"
#: Sizes of models that the configurations name. A stage that goes on from another has the 8B model; of one that sees
#: pictures this is the language part.
SHAPES: dict[str, dict[str, Any]] = {
    "Qwen/Qwen3-8B": {
        "hidden_size": 4096,
        "intermediate_size": 12_288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "tie_word_embeddings": False,
    },
    "Qwen/Qwen3-1.7B": {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "tie_word_embeddings": True,
    },
}
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def make(models: list[dict[str, Any]], quick: bool) -> None:
    """Make every model of a ``small.toml`` in the working folder."""
    makers = {"text": text, "tools": tools, "vision": vision}
    for model in models:
        makers[model["kind"]](model, quick)


def text(facts: dict[str, Any], quick: bool) -> None:
    """Make a Llama of 0.1 million parameters that reads characters and has learnt the rows of a file."""
    tokenizer = character_tokenizer(CHARACTERS)
    rows = [json.loads(line) for line in Path(facts["rows"]).read_text(encoding="utf-8").splitlines()]
    run = posttrain.train(
        "sft",
        model=small_model(tokenizer, seed=0, positions=96),
        tokenizer=tokenizer,
        data=rows,
        steps=2 if quick else facts["steps"],
        batch_size=32,
        learning_rate=3e-3,
        schedule="constant",
        cache="off",
        progress="quiet",
        output=f"{facts['folder']}-practice",
    )
    run.model.save_pretrained(facts["folder"])
    tokenizer.save_pretrained(facts["folder"])


def tools(facts: dict[str, Any], quick: bool) -> None:
    """Save the model of examples/tools.py, whose tokens are the pieces of calls; it has learnt nothing."""
    sys.path.insert(0, str(EXAMPLES))
    from tools import make_model, make_tokenizer

    tokenizer = make_tokenizer()
    make_model(tokenizer, seed=0).save_pretrained(facts["folder"])
    tokenizer.save_pretrained(facts["folder"])


def vision(facts: dict[str, Any], quick: bool) -> None:
    """Save a vision-language model with the processor of its family; it has learnt nothing."""
    from posttrain_testkit.tiny_vision import save_tiny_vision

    save_tiny_vision(facts["family"], facts["folder"])


def shape(name: str, folder: Path) -> Path:
    """Write the configuration of a model of ``SHAPES``, without weights: what an estimate needs."""
    from transformers import Qwen3Config

    heads = {"head_dim": 128, "num_key_value_heads": 8, "vocab_size": 151_936}
    Qwen3Config(**SHAPES[name], **heads).save_pretrained(folder)
    return folder
