"""Embedding and vocabulary projection, the two ends of a model: their size, and whether they are tied."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from posttrain.errors import ModelError
from posttrain.models.config_files import read_config

#: Attribute of a base whose added rows are only in an adapter's folder.
GROWN = "posttrain_grown"
#: A stored tensor of one end: the module's name, then a whole matrix or a part of an adapter.
_STORED = re.compile(r"^(?:base_model\.model\.)?(.+?)\.(?:modules_to_save\.)?(weight|lora_embedding_A|lora_B\.weight)$")


def is_tied(inner: Any) -> bool:
    """Return whether embedding and vocabulary projection share one matrix."""
    ends = end_weights(inner)
    return len(ends) == 2 and ends[0] is ends[1]


def untie(inner: Any) -> bool:
    """Give the projection a matrix of its own where it shares the embedding's; return whether it did.

    An adapter merged into a shared matrix would change the other end too (peft only warns).
    """
    if not is_tied(inner):
        return False
    head = _base_layer(inner.get_output_embeddings())
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
    return True


def tie_if_equal(inner: Any) -> None:
    """Undo ``untie`` if both ends are still equal; otherwise mark them as untied in configuration and files."""
    first, second = end_weights(inner)
    same = first.shape == second.shape and torch.equal(first, second)
    inner.config.tie_word_embeddings = same
    if same:
        inner.tie_weights()
    else:
        inner.all_tied_weights_keys = inner.get_expanded_tied_weights_keys(all_submodels=True)


def grow_to_adapter(module: Any, folder: Path) -> None:
    """Grow the base to as many embedding rows as the adapter in ``folder`` was trained with, which holds the new ones.

    Raises ModelError where rows of one end are in no file.
    """
    rows, stored = _rows_of(module, folder)
    ends = end_weights(module)
    if rows <= ends[0].shape[0]:
        return
    names = end_names(module) if not is_tied(module) else end_names(module)[:1]
    lacking = [name for name in names if name not in stored]
    if lacking and not (is_tied(module) and stored):
        raise ModelError(
            f"Adapter '{folder}' was trained on {rows} tokens and its base has {ends[0].shape[0]}: the added rows of "
            f"'{lacking[0]}' are in neither. Train it with --lora-modules-to-save {','.join(names)}, or name a base "
            "that has these rows."
        )
    module.resize_token_embeddings(rows, mean_resizing=False)
    setattr(module, GROWN, True)


def _rows_of(module: Any, folder: Path) -> tuple[int, set[str]]:
    """Return how many rows the adapter's files need, and the names of the ends whose rows they hold."""
    from safetensors import safe_open

    ends, rows, stored = end_names(module), 0, set()
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        for key in file.keys():  # noqa: SIM118  (not a mapping)
            found = _STORED.match(key)
            if found and found[1] in ends:
                shape = file.get_slice(key).get_shape()
                rows = max(rows, shape[1] if found[2] == "lora_embedding_A" else shape[0])
                stored |= {found[1]} if found[2] == "weight" else set()
    chosen = read_config(folder, "adapter_config.json").get("trainable_token_indices")
    if isinstance(chosen, list):  # peft's short form means the embedding, and a tied head
        chosen = {ends[0]: chosen}
    for name, indices in (chosen or {}).items():
        rows = max(rows, max(indices, default=-1) + 1)
        stored |= {end for end in ends if end == name or end.endswith(f".{name}")}
    return rows, stored


def _base_layer(module: Any) -> Any:
    """Return the layer below an adapter, or the original of a trained copy."""
    while True:
        below = getattr(module, "base_layer", None) or getattr(module, "original_module", None)
        if below is None:
            return module
        module = below


def end_weights(inner: Any) -> list[Any]:
    """Return the matrices of embedding and projection, below any adapter; one object twice where they are tied."""
    ends = [inner.get_input_embeddings(), inner.get_output_embeddings()]
    return [_base_layer(end).weight for end in ends if end is not None]


def end_names(inner: Any) -> list[str]:
    """Return the module names of embedding and projection."""
    names = {id(module): name for name, module in inner.named_modules()}
    return [names[id(end)] for end in (inner.get_input_embeddings(), inner.get_output_embeddings()) if id(end) in names]
