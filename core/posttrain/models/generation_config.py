"""Generation config of a saved model: the tokens that end an answer, and options that transformers accepts."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import transformers

from posttrain.errors import ModelError, short


def stop_ids(inner: Any, tokenizer: Any) -> set[int]:
    """Return every token that ends a completion: the tokenizer's and those of the generation config."""
    return configured_stops(getattr(inner, "generation_config", None), tokenizer)


def configured_stops(configuration: Any, tokenizer: Any) -> set[int]:
    """Return the same for a generation config that may be None. Raises ModelError where its ids are no tokens."""
    configured = configuration and configuration.eos_token_id
    found = [tokenizer.eos_token_id, *(configured if isinstance(configured, list | tuple) else [configured])]
    if any(type(i) not in (int, type(None)) for i in found):  # int() would make a token of true and of 1.5
        raise ModelError(
            f"eos_token_id in the model's config.json or generation_config.json is {short(configured)}, expected the "
            "number of a token, or a list of such numbers."
        )
    return {i for i in found if i is not None}


def notes_on(inner: Any) -> list[str]:
    """Report what of the model's generation config cannot be saved as it is, and what is saved instead."""
    configuration = getattr(inner, "generation_config", None)
    if configuration is None or not inner.can_generate() or _problem(configuration) is None:
        return []
    mended = "with do_sample=true" if _sampling(configuration) is not None else "without its sampling options"
    return [f"The base's generation_config.json contradicts itself ({_problem(configuration)}); it is saved {mended}."]


@contextmanager
def saved_form(inner: Any, tokenizer: Any) -> Iterator[None]:
    """Give ``inner``, inside the block, the generation config to save.

    It stops at every token at which the run stops: a chat model's tokenizer may end a turn with a token that its base
    does not know as an end. What transformers refuses to write is repaired.
    """
    before = getattr(inner, "generation_config", None)
    if before is None or not inner.can_generate():
        yield
        return
    inner.generation_config = _mended(before, stop_ids(inner, tokenizer))
    try:
        yield
    finally:
        inner.generation_config = before


def _mended(before: Any, stops: set[int]) -> Any:
    configuration = copy.deepcopy(before)
    if _problem(configuration) is not None:
        sampling = _sampling(configuration)
        if sampling is None:
            ids = ("bos_token_id", "pad_token_id", "decoder_start_token_id")
            sampling = transformers.GenerationConfig(**{name: getattr(before, name, None) for name in ids})
        configuration = sampling
    known = before.eos_token_id
    known = set(known if isinstance(known, list | tuple) else [known]) - {None}
    if stops - known:
        configuration.eos_token_id = sorted(stops) if len(stops) > 1 else next(iter(stops))
    return configuration


def _sampling(configuration: Any) -> Any:
    """Return the configuration with sampling on, if it is valid then."""
    sampling = copy.deepcopy(configuration)
    sampling.do_sample = True
    return sampling if _problem(sampling) is None else None


def _problem(configuration: Any) -> str | None:
    """Return why transformers would not write the configuration, in one line; None where it would."""
    try:
        configuration.validate(strict=True)
    except ValueError as error:
        lines = [line.strip(" -") for line in str(error).splitlines() if line.startswith("- ")] or [str(error)]
        return lines[0].split(". ")[0]
    return None


def set_padding(config: Any, tokenizer: Any) -> None:
    """Set a reward model's padding token, also where a model with images describes its language part."""
    config.pad_token_id = config.get_text_config().pad_token_id = _pad_id(tokenizer)


def _pad_id(tokenizer: Any) -> int:
    """Return a padding token other than the stop token: a reward model finds the last token by it."""
    for candidate in (tokenizer.pad_token_id, tokenizer.unk_token_id, *sorted(tokenizer.all_special_ids)):
        if candidate is not None and candidate != tokenizer.eos_token_id:
            return int(candidate)
    return int(tokenizer.eos_token_id or 0)
