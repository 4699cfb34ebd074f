"""Processor of a vision-language model: whether a folder has one, and loading it beside the tokenizer."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.modeling_layers import GenericForSequenceClassification, GenericForTokenClassification
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
)

from posttrain.contract.images import from_pixels
from posttrain.errors import DependencyError, ModelError, PosttrainError, first_line
from posttrain.models import foreign
from posttrain.models.shown import SIZE
from posttrain.network.image_reader import ImageReader, without_videos

#: Files that configure the reading of images.
_FILES = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
#: Kind of head -> what a class with it is called, transformers' part for it, its auto class, families that it knows.
_HEADS: dict[str, tuple[str, type, Any, Any]] = {
    "score": (
        "SequenceClassification",
        GenericForSequenceClassification,
        transformers.AutoModelForSequenceClassification,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    ),
    "steps": (
        "TokenClassification",
        GenericForTokenClassification,
        transformers.AutoModelForTokenClassification,
        MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    ),
}
#: Configurations and heads with a class made here.
_made: set[tuple[type, str]] = set()


def reads_images(config: Any) -> bool:
    """Return whether a configuration is that of a model of text and images."""
    return config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES and hasattr(config, "vision_config")


def only_with_images(config: Any) -> bool:
    """Return whether a configuration is that of a model of text and images without a text-only class."""
    return reads_images(config) and config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def auto_class(source: str, options: dict[str, Any], head: str) -> Any:
    """Return the class of transformers that loads the model in ``source`` with a head of kind ``head``.

    A model with a processor is loaded with its image encoder.
    """
    config = _configuration(source, options)
    if head in _HEADS:
        return head_class(config, head)
    if config is not None and reads_images(config) and (only_with_images(config) or _files(source)):
        return transformers.AutoModelForImageTextToText
    return transformers.AutoModelForCausalLM


def head_class(config: Any, head: str) -> Any:
    """Return the auto class for a "score" or "steps" head, which knows every model that reads images.

    Where transformers has no such class for a family, one is made of transformers' own parts and registered.
    """
    called, part, auto, known = _HEADS[head]
    if config is None or not reads_images(config) or config.model_type in known or (type(config), head) in _made:
        return auto
    decoder: Any = transformers.AutoModel._model_mapping[type(config)]  # type: ignore[attr-defined]
    family = next(kind for kind in decoder.__mro__ if kind.__name__.endswith("PreTrainedModel"))
    name = f"{decoder.__name__.removesuffix('Model')}For{called}"
    made = type(name, (part, family), {"__module__": __name__})
    # Files of some families have other tensor names than the modules, and transformers renames them by the model's
    # class.
    with_head = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[config.model_type]
    renamed = get_checkpoint_conversion_mapping(with_head)
    if renamed is not None:
        register_checkpoint_conversion_mapping(name, renamed, overwrite=True)
    auto.register(type(config), made, exist_ok=True)
    _made.add((type(config), head))
    return auto


def image_token_of(config: Any) -> int | None:
    """Return the id of the image placeholder token; None for a text model."""
    if not reads_images(config):
        return None
    found = next(
        (getattr(config, n, None) for n in ("image_token_id", "image_token_index") if hasattr(config, n)), None
    )
    return None if found is None else int(found)


def load_reader(source: str, options: dict[str, Any], tokenizer: Any, max_pixels: int | None) -> ImageReader | None:
    """Load the image reader of the model in ``source``, with ``tokenizer``; None for a text model or without processor.

    ``options`` are those of ``from_pretrained``. Raises ModelError for a processor that cannot be loaded.
    """
    config = _configuration(source, options)
    if config is None or (token := image_token_of(config)) is None:
        return None
    files = _files(source)
    if not files:
        return None
    try:
        processor = _read(source, {n: v for n, v in options.items() if n == "trust_remote_code"}, config)
    except PosttrainError:
        raise
    except Exception as error:  # readers raise anything on a damaged file
        first = first_line(error)
        if "pillow" in str(error).lower() or "PIL" in str(error):
            raise DependencyError(
                f"The processor of '{source}' needs the package pillow. "
                "Install it with: pip install 'posttrain[images]'"
            ) from None
        raise ModelError(
            f"The processor of '{source}' cannot be loaded: {first} Expected the files that transformers' "
            "AutoProcessor reads."
        ) from None
    processor.tokenizer = tokenizer
    _check_reading(ImageReader(processor, token, None, files), source)
    return ImageReader(processor, token, max_pixels, files)


def _check_reading(reader: ImageReader, source: str) -> None:
    """Read an image. Raises ModelError where the processor's files are at fault, before a row's image is blamed."""
    try:
        reader.read(from_pixels(torch.zeros(*SIZE, 3, dtype=torch.uint8).numpy()))
    except ModelError as error:
        files = " or ".join(sorted(reader.files))
        raise ModelError(f"The processor of '{source}' ({files}) cannot be used: {error}") from None


def reader_for(processor: Any, config: Any, max_pixels: int | None) -> ImageReader:
    """Build an image reader from a program's processor. Raises ModelError for a model without images."""
    token = image_token_of(config)
    if token is None:
        raise ModelError(
            f"A {type(processor).__name__} was handed over, and the model ({config.model_type}) takes no pictures. "
            "Expected a vision-language model, or a tokenizer."
        )
    return ImageReader(processor, token, max_pixels)


def _read(source: str, options: dict[str, Any], config: Any) -> Any:
    """Load the processor without its part for videos, which not every folder has, nor every machine its packages."""
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    kind = PROCESSOR_MAPPING.get(type(config), None)
    if kind is None or not hasattr(kind, "get_attributes"):
        return foreign.read(transformers.AutoProcessor, source, **options)
    return foreign.read(without_videos(kind), source, **options)


def _configuration(source: str, options: dict[str, Any]) -> Any:
    """Load the model's configuration; None for a GGUF file, or where it cannot be read."""
    if "gguf_file" in options:
        return None
    trusted = options.get("trust_remote_code", False)
    with contextlib.suppress(OSError, ValueError, ImportError, KeyError):  # loading the model reports it
        return foreign.read(transformers.AutoConfig, source, trust_remote_code=trusted)
    return None


def _files(source: str) -> dict[str, bytes]:
    """Read the files of a folder or a snapshot that configure the reading of images, by name."""
    from transformers.utils import cached_file

    found: dict[str, bytes] = {}
    for name in _FILES:
        with contextlib.suppress(OSError, ValueError):
            path = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
            if path is not None:
                found[name] = Path(path).read_bytes()
    return found
