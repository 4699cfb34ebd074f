"""The processor of a vision-language model: whether a folder has one, and loading it beside the tokenizer."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import transformers
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from posttrain.errors import DependencyError, ModelError
from posttrain.models import foreign
from posttrain.network.image_reader import ImageReader, without_videos

#: Files that say how pictures are read.
_FILES = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
#: Configurations for which a class with a score was made.
_made: set[type] = set()


def reads_images(config: Any) -> bool:
    """Whether a configuration is that of a model that transformers gives text and pictures."""
    return config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES and hasattr(config, "vision_config")


def only_with_images(config: Any) -> bool:
    """The same of a model that has no class for text alone."""
    return reads_images(config) and config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def auto_class(source: str, options: dict[str, Any], head: str) -> Any:
    """The class of transformers that loads the model in ``source`` with an end of the kind ``head``.

    A model with a processor is loaded with its image encoder. Where transformers has no class with a score for it, one
    is made of transformers' own parts and registered.
    """
    config = _configuration(source, options)
    if head == "steps":
        return transformers.AutoModelForTokenClassification
    if head == "score":
        if config is not None and reads_images(config):
            _register_score(config)
        return transformers.AutoModelForSequenceClassification
    if config is not None and reads_images(config) and (only_with_images(config) or _files(source)):
        return transformers.AutoModelForImageTextToText
    return transformers.AutoModelForCausalLM


def _register_score(config: Any) -> None:
    """Make and register the class of a family that transformers has no reward model of."""
    if config.model_type in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES or type(config) in _made:
        return
    decoder: Any = transformers.AutoModel._model_mapping[type(config)]  # type: ignore[attr-defined]
    family = next(kind for kind in decoder.__mro__ if kind.__name__.endswith("PreTrainedModel"))
    name = f"{decoder.__name__.removesuffix('Model')}ForSequenceClassification"
    made = type(name, (GenericForSequenceClassification, family), {"__module__": __name__})
    # Files of some families have other names than the modules, and transformers renames them by the model's class.
    with_head = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[config.model_type]
    renamed = get_checkpoint_conversion_mapping(with_head)
    if renamed is not None:
        register_checkpoint_conversion_mapping(name, renamed, overwrite=True)
    transformers.AutoModelForSequenceClassification.register(type(config), made, exist_ok=True)
    _made.add(type(config))


def image_token_of(config: Any) -> int | None:
    """Id of the token that stands for pictures; None for a model of text."""
    if not reads_images(config):
        return None
    found = next(
        (getattr(config, n, None) for n in ("image_token_id", "image_token_index") if hasattr(config, n)), None
    )
    return None if found is None else int(found)


def load_reader(source: str, options: dict[str, Any], tokenizer: Any, max_pixels: int | None) -> ImageReader | None:
    """What reads pictures for the model in ``source``, with ``tokenizer``; None for one of text, or without processor.

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
    except (OSError, ValueError, TypeError, ImportError, AttributeError, KeyError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
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
    return ImageReader(processor, token, max_pixels, files)


def reader_for(processor: Any, config: Any, max_pixels: int | None) -> ImageReader:
    """What reads pictures with a processor that a program hands over. Raises ModelError where its model takes none."""
    token = image_token_of(config)
    if token is None:
        raise ModelError(
            f"A {type(processor).__name__} was handed over, and the model ({config.model_type}) takes no pictures. "
            "Expected a vision-language model, or a tokenizer."
        )
    return ImageReader(processor, token, max_pixels)


def _read(source: str, options: dict[str, Any], config: Any) -> Any:
    """The processor, without the part for videos where that one's packages are missing."""
    from transformers.utils import is_torchvision_available

    if is_torchvision_available():
        return foreign.read(transformers.AutoProcessor, source, **options)
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    kind = PROCESSOR_MAPPING.get(type(config), None)
    if kind is None or not hasattr(kind, "get_attributes"):
        return foreign.read(transformers.AutoProcessor, source, **options)
    return foreign.read(without_videos(kind), source, **options)


def _configuration(source: str, options: dict[str, Any]) -> Any:
    """The model's configuration; None for a GGUF file, or where it cannot be read."""
    if "gguf_file" in options:
        return None
    trusted = options.get("trust_remote_code", False)
    with contextlib.suppress(OSError, ValueError, ImportError, KeyError):  # it says so when the model is loaded
        return foreign.read(transformers.AutoConfig, source, trust_remote_code=trusted)
    return None


def _files(source: str) -> dict[str, bytes]:
    """The files of a folder or a snapshot that say how pictures are read, by name."""
    from transformers.utils import cached_file

    found: dict[str, bytes] = {}
    for name in _FILES:
        with contextlib.suppress(OSError, ValueError):
            path = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
            if path is not None:
                found[name] = Path(path).read_bytes()
    return found
