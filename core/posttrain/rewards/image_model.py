"""A reward model that is shown the prompts' images: rows are tokenised, placed and scored as in its training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from posttrain.contract.messages import is_messages
from posttrain.contract.views import Sequence
from posttrain.data.tokens.encode_one import encode_row
from posttrain.errors import RewardError
from posttrain.models.load import load_policy, load_tokenizer
from posttrain.network.chunked_head import TokenQuery
from posttrain.settings import Settings

Score = Callable[..., list[float]]


def image_reward_model(folder: Path | str, batch_size: int, device: str | torch.device | None) -> Score:
    """Load the vision-language reward model in ``folder``; return the function ``(prompts, completions, images)``.

    ``images`` are pictures of PIL, those of each prompt; None for prompts of text. Raises ModelError.
    """
    settings = Settings(model=str(folder), device=None if device is None else str(device), train_vision="none")
    tokenizer = load_tokenizer(str(folder), settings.model)
    loaded = load_policy(str(folder), tokenizer, settings.model, head="score", noise=False)
    policy = loaded.policy.eval()

    def sequence(prompt: Any, completion: str, images: list[Any]) -> Sequence:
        shown = {"images": images} if images else {}
        return encode_row(_bare(prompt), completion, tokenizer, settings.data, loaded.stop_ids, shown)

    def score(prompts: list[Any], completions: list[str], images: list[list[Any]] | None = None) -> list[float]:
        own = images if images is not None else [[] for _ in prompts]
        rows = [sequence(*row) for row in zip(prompts, completions, own, strict=True)]
        scores = [0.0] * len(rows)
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        for start in range(0, len(rows), batch_size):
            chosen = order[start : start + batch_size]
            with torch.no_grad():
                values = policy([rows[row] for row in chosen], TokenQuery())["score"]  # (b,)
            for row, value in zip(chosen, values.tolist(), strict=True):
                scores[row] = value
        return scores

    return score


def refuse_unseen(folder: Path | str, images: list[list[Any]] | None) -> None:
    """Raise RewardError where prompts have images that a model of text, or of steps, would not be shown."""
    if images is not None and any(images):
        raise RewardError(
            f"reward model '{folder}' is asked without images, and the prompts have some. Use a vision-language reward "
            "model (posttrain train reward), or a reward function, whose argument images has them."
        )


def _bare(prompt: Any) -> Any:
    """Return messages whose image parts name nothing: the images are given beside them, in order."""
    if not is_messages(prompt):
        return prompt
    return [message | {"content": _parts(message.get("content"))} for message in prompt]


def _parts(content: Any) -> Any:
    if not isinstance(content, list):
        return content
    return [{"type": "image"} if part.get("type") in ("image", "image_url") else part for part in content]
