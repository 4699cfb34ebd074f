"""Folder with a model's configuration and tokenizer, from which an engine starts before its weights come."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.network import attention
from posttrain.network.image_reader import ImageReader, reader_of

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
        _name_videos(reader, config.model_type, folder)
    return folder


def _name_videos(reader: ImageReader, family: str, folder: Path) -> None:
    """Name the family's class for videos where no file does: vLLM loads it for a model that is shown images alone."""
    from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING_NAMES

    names, file = VIDEO_PROCESSOR_MAPPING_NAMES.get(family), folder / "video_preprocessor_config.json"
    name = names.get("torchvision") if isinstance(names, dict) else names
    settings = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
    if name is not None and not file.exists() and "video_processor" not in settings:
        file.write_text(json.dumps({"video_processor_type": name}), encoding="utf-8")
