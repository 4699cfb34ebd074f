"""Answers of a model to prompts, outside of any run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from posttrain.contract.generation import Sampling
from posttrain.data import prepare, read_rows
from posttrain.generation.local.hf import HfGenerator
from posttrain.models.load import load_policy, load_tokenizer
from posttrain.network.image_reader import reader_of
from posttrain.runs.checkpoints import model_of
from posttrain.settings import Settings
from posttrain.settings.options import cast


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
) -> list[str]:
    """One answer a prompt. ``model`` is a folder, Hub id, GGUF file, adapter folder, or a run directory.

    A text becomes the user's message of a conversation where the tokenizer has a chat template; a list of messages is
    taken as it is. ``chat_template_kwargs`` are those of the run's settings. ``images`` (paths, bytes, pictures of PIL)
    are shown before every prompt. Raises PosttrainError.
    """
    settings = Settings(
        model=_final(model),
        max_new_tokens=max_new_tokens,
        max_length=1_000_000,
        system_prompt=system_prompt,
        chat_template_kwargs=cast("chat-template-kwargs", chat_template_kwargs, dict[str, str] | None),
        dtype=dtype,  # type: ignore[arg-type]  # checked when the model is loaded
        device=device,
        max_pixels=max_pixels,
        packing=False,
        cache="off",
    )
    sampling = Sampling(max_new_tokens, temperature, top_p, top_k)
    tokenizer = load_tokenizer(settings.model.model, settings.model, settings.data.chat_template)
    if tokenizer.chat_template:
        prompts = [[{"role": "user", "content": p}] if isinstance(p, str) else p for p in prompts]
    loaded = load_policy(settings.model.model, tokenizer, settings.model)
    shown = {"images": list(images)} if images else {}
    reader = reader_of(tokenizer)
    if shown and reader is not None:  # text without a template has a placeholder for each
        prompts = [reader.placeholder * len(shown["images"]) + p if isinstance(p, str) else p for p in prompts]
    rows = read_rows([{"prompt": p, **shown} for p in prompts], ("prompt",), settings.data, what="prompts")
    examples = prepare(rows, tokenizer, settings.data, loaded.stop_ids, None)
    sequences = [examples[i].sequences["prompt"][0] for i in range(len(examples))]
    generator = HfGenerator(loaded.policy.model, tokenizer, loaded.stop_ids, 32)
    with torch.no_grad():
        seeds = [[seed * 1_000_003 + i] for i in range(len(sequences))]
        own = [list(sequence.images) for sequence in sequences]
        answers = generator.generate([sequence.ids for sequence in sequences], sampling, seeds, own)
    return [answer[0].text for answer in answers]


def _final(model: str) -> str:
    """The model inside a run directory: the final one, or that of the newest checkpoint."""
    path = Path(model).expanduser()
    if not (path / "run.json").is_file():
        return model
    return str(model_of(path))
