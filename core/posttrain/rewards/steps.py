"""A process reward model as a reward: the probability that every step of a completion is right."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch

from posttrain.data.tokens.sequence_specs import sequence_specs
from posttrain.data.tokens.templates import Templates
from posttrain.data.tokens.tokenise import Encoder, Tokens
from posttrain.errors import SettingsError
from posttrain.settings import Settings

Combine = Literal["minimum", "product"]


def step_reward(
    model: Any, tokenizer: Any, batch_size: int, refuse: Callable[[Any], None] = lambda images: None
) -> Callable[..., list[float]]:
    """Return the reward function ``(prompts, completions, combine)`` of a token classifier (bad, good).

    A completion's steps are its lines. Each gets the probability that it is good, read at the last token of its line
    break, the text encoded as in training; the reward is the smallest of them, or with ``combine`` "product" their
    product. A completion without any text gets 0. ``refuse`` raises for images of prompts, which the model does not
    get. Raises SettingsError for another ``combine``.
    """

    def score(
        prompts: list[Any],
        completions: list[str],
        combine: Combine = "minimum",
        images: list[list[Any]] | None = None,
    ) -> list[float]:
        refuse(images)
        if combine not in get_args(Combine):
            raise SettingsError(f"reward option 'combine' is '{combine}', expected {' or '.join(get_args(Combine))}.")
        rows = [encode_steps(tokenizer, prompt, text) for prompt, text in zip(prompts, completions, strict=True)]
        joined = min if combine == "minimum" else math.prod
        return [joined(found) if found else 0.0 for found in step_probabilities(model, rows, batch_size)]

    return score


def encode_steps(tokenizer: Any, prompt: Any, completion: str) -> Tokens | None:
    """Return the tokens of a prompt (text or messages) with the lines of its completion; None without lines."""
    steps = [line for line in completion.splitlines() if line.strip()]
    if not steps:
        return None
    settings = Settings()
    row = {"prompt": prompt, "completions": steps, "labels": [0.0] * len(steps)}
    (draft,) = sequence_specs(row, "stepwise", "a completion", settings.data)["completion"]
    (tokens,) = Encoder(tokenizer, set()).encode([Templates(tokenizer, settings.data).layout(draft, "a completion")])
    return tokens


def step_probabilities(model: Any, rows: list[Tokens | None], batch_size: int) -> list[list[float]]:
    """Return for each row the probability that each of its steps is good; none for a row that is None."""
    found: list[list[float]] = [[] for _ in rows]
    present = {place: row for place, row in enumerate(rows) if row is not None}
    order = sorted(present, key=lambda place: len(present[place].ids))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        lengths = torch.tensor([len(present[place].ids) for place in chosen])  # (b,)
        ids = torch.zeros(len(chosen), int(lengths.max()), dtype=torch.long)  # (b, w)
        for turn, place in enumerate(chosen):
            ids[turn, : lengths[turn]] = torch.from_numpy(present[place].ids).long()
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()  # (b, w)
        with torch.no_grad():
            logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits.float().cpu()
        good = logits.softmax(-1)[..., 1]  # (b, w)
        for turn, place in enumerate(chosen):
            found[place] = good[turn, present[place].marks].tolist()
    return found
