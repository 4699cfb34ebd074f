"""Folder with a model's configuration and tokenizer, from which an engine starts before its weights come."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.network import attention
from posttrain.network.image_reader import reader_of

if TYPE_CHECKING:
    from posttrain.network.token_model import TokenModel


def write_folder(policy: TokenModel, tokenizer: Any, folder: Path) -> Path:
    """Write a transformers folder without weights, whatever the policy was loaded from."""
    config = policy.inner.config
    implementation = config._attn_implementation
    quantised = getattr(config, "quantization_config", None)
    if implementation == attention.NAME:
        config._attn_implementation = "sdpa"  # the name exists in this package alone
    if quantised is not None:
        del config.quantization_config  # the trainer sends plain numbers
    try:
        config.save_pretrained(folder)
    finally:
        config._attn_implementation = implementation
        if quantised is not None:
            config.quantization_config = quantised
    tokenizer.save_pretrained(folder)
    if (reader := reader_of(tokenizer)) is not None:
        reader.save(folder, tokenizer)
    return folder
