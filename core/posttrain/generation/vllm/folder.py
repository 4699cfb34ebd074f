"""What an engine needs to know of a model before its weights come: configuration and tokenizer, in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.network import attention

if TYPE_CHECKING:
    from posttrain.network.token_model import TokenModel


def write_folder(policy: TokenModel, tokenizer: Any, folder: Path) -> Path:
    """A transformers folder without weights, whatever the policy was loaded from."""
    config = policy.inner.config
    implementation = config._attn_implementation
    quantised = getattr(config, "quantization_config", None)
    if implementation == attention.NAME:
        config._attn_implementation = "sdpa"  # the name means nothing outside this package
    if quantised is not None:
        del config.quantization_config  # the weights that come are plain numbers
    try:
        config.save_pretrained(folder)
    finally:
        config._attn_implementation = implementation
        if quantised is not None:
            config.quantization_config = quantised
    tokenizer.save_pretrained(folder)
    return folder
