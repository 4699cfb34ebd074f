"""Completions of a model for given prompts, outside of any run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

from posttrain.contract.generation import Sampling
from posttrain.data import prepare, read_rows
from posttrain.generation.local.draft import load_speculation
from posttrain.generation.local.hf import HfGenerator
from posttrain.generation.weights import weights_for
from posttrain.models.load import Loaded, load_policy, load_tokenizer
from posttrain.network.image_reader import reader_of
from posttrain.runs.checkpoints import model_in
from posttrain.settings import Settings
from posttrain.settings.options import cast

#: Completions that run at one time.
_AT_ONCE = 32


def generate_text(
    model: str,
    prompts: list[Any],
    *,
    system_prompt: str | None = None,
    chat_template_kwargs: dict[str, str] | str | None = None,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    dtype: str | None = None,
    device: str | None = None,
    images: list[Any] | None = None,
    max_pixels: int | None = None,
    generation: str = "hf",
    speculate: str = "off",
    draft_model: str | None = None,
) -> list[str]:
    """Generate one answer a prompt. ``model`` is a folder, Hub id, GGUF file, adapter folder, or a run directory.

    A text becomes the user's message of a conversation where the tokenizer has a chat template; a list of messages is
    used unchanged. ``chat_template_kwargs`` are those of the run's settings. ``images`` (paths, bytes, PIL images)
    precede every prompt. ``generation``: hf, or vllm where it is installed. ``speculate`` and ``draft_model`` are those
    of the run's settings. Raises PosttrainError.
    """
    settings = Settings(
        model=model_in(model),
        max_new_tokens=max_new_tokens,
        max_length=1_000_000,
        system_prompt=system_prompt,
        chat_template_kwargs=cast("chat-template-kwargs", chat_template_kwargs, dict[str, str] | None),
        dtype=dtype,  # type: ignore[arg-type]  # checked when the model is loaded
        device=device,
        max_pixels=max_pixels,
        packing=False,
        cache="off",
        generation=generation,
        speculate=cast("speculate", speculate, Literal["off", "ngram", "draft"]),
        draft_model=draft_model,
    )
    settings.generation.check()
    sampling = Sampling(max_new_tokens, temperature, top_p, top_k)
    tokenizer = load_tokenizer(settings.model.model, settings.model, settings.data.chat_template)
    if tokenizer.chat_template:
        prompts = [[{"role": "user", "content": p}] if isinstance(p, str) else p for p in prompts]
    loaded = load_policy(settings.model.model, tokenizer, settings.model)
    shown = {"images": list(images)} if images else {}
    reader = reader_of(tokenizer)
    if shown and reader is not None:  # text without a template gets a placeholder for each
        prompts = [reader.placeholder * len(shown["images"]) + p if isinstance(p, str) else p for p in prompts]
    rows = read_rows([{"prompt": p, **shown} for p in prompts], ("prompt",), settings.data, what="prompts")
    examples = prepare(rows, tokenizer, settings.data, loaded.stop_ids, None)
    sequences = [examples[i].sequences["prompt"][0] for i in range(len(examples))]
    longest = max(len(sequence) for sequence in sequences) + max_new_tokens
    with torch.no_grad(), _generator(settings, loaded, temperature, longest) as generator:
        seeds = [[seed * 1_000_003 + i] for i in range(len(sequences))]
        own = [list(sequence.images) for sequence in sequences]
        answers = generator.generate([sequence.ids for sequence in sequences], sampling, seeds, own)
    return [answer[0].text for answer in answers]


@contextmanager
def _generator(settings: Settings, loaded: Loaded, temperature: float, longest: int) -> Iterator[Any]:
    """Yield a backend with the model's weights; ``longest``: tokens of the longest text."""
    if settings.generation.generation == "hf":
        model, tokenizer = loaded.policy.model, loaded.tokenizer
        guesses = load_speculation(settings.generation, settings.model, tokenizer, model)
        yield HfGenerator(model, tokenizer, loaded.stop_ids, _AT_ONCE, speculation=guesses)
        return
    from posttrain.generation.vllm.engine import EngineOptions, VllmEngine
    from posttrain.generation.vllm.requests import Limits

    policy = loaded.policy
    known = getattr(policy.inner.config.get_text_config(), "max_position_embeddings", None) or longest
    limits = Limits(frozenset(loaded.stop_ids), min(longest, known))
    own = policy.inner.get_input_embeddings().weight.dtype
    memory = settings.generation.generation_gpu_memory
    engine = VllmEngine(policy, loaded.tokenizer, limits, EngineOptions(temperature, own, _AT_ONCE, memory))
    try:
        engine.accept(weights_for(policy.model, engine.abilities, 0, -1))
        yield engine
    finally:
        engine.close()
