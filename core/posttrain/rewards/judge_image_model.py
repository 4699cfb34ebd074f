"""A vision-language chat model as a judge: it is shown the prompt's images, and names the better answer."""

from __future__ import annotations

from typing import Any

import torch

from posttrain.contract.views import Sequence
from posttrain.data.tokens.encode_one import encode_shown
from posttrain.errors import ModelError
from posttrain.models.load import load_policy, load_tokenizer
from posttrain.network.chunked_head import TokenQuery
from posttrain.network.image_reader import ImageReader, reader_of
from posttrain.rewards.judge_model import judge_device, judge_settings, label_tokens
from posttrain.rewards.judge_prompt import fill_parts, read_template


class ImageJudge:
    """A vision-language chat model: ``(prompts, firsts, seconds, images)`` to the probability of label A against B.

    ``images`` are pictures of PIL, those of each prompt. The log-probs of the two labels as the first words of an
    answer are compared, as by ``ModelJudge``; None for a pair that is too long. Raises ModelError for a model that
    cannot chat.
    """

    def __init__(self, model: str, template: str | None = None, batch_size: int = 8, device: str | None = None):
        settings = judge_settings(model, judge_device(device)).replace(train_vision="none", packing=True)
        self.template = read_template(template)
        self.tokenizer = load_tokenizer(model, settings.model)
        if not self.tokenizer.chat_template:
            raise ModelError(f"The judge '{model}' has no chat template. Expected a model that was trained to chat.")
        self.policy = load_policy(model, self.tokenizer, settings.model, noise=False).policy.eval()
        self.policy.requires_grad_(False)
        self.data = settings.data
        self.name = model
        self.batch_size = batch_size
        config = self.policy.inner.config.get_text_config()
        self.longest: int = getattr(config, "max_position_embeddings", None) or 1 << 62

    def __call__(
        self, prompts: list[Any], firsts: list[str], seconds: list[str], images: list[list[Any]] | None = None
    ) -> list[float | None]:
        """Return the probabilities that the first answers are better."""
        own = images if images is not None else [[] for _ in prompts]
        rows = [self._rows(*pair) for pair in zip(prompts, firsts, seconds, own, strict=True)]
        fitting = [place for place, (row, _) in enumerate(rows) if len(row) <= self.longest]
        fitting.sort(key=lambda place: len(rows[place][0]))
        found: list[float | None] = [None] * len(rows)
        for start in range(0, len(fitting), self.batch_size):
            places = fitting[start : start + self.batch_size]
            with torch.no_grad():
                logps = self.policy([row for place in places for row in rows[place]], TokenQuery())["logps"]  # (2b,)
            chances = torch.sigmoid(logps[::2] - logps[1::2].float())  # (b,)
            for place, value in zip(places, chances.tolist(), strict=True):
                found[place] = value
        return found

    def _rows(self, prompt: Any, first: str, second: str, images: list[Any]) -> tuple[Sequence, Sequence]:
        """Return the question with each label as its only trained token."""
        reader = reader_of(self.tokenizer)
        assert isinstance(reader, ImageReader)
        parts = fill_parts(self.template, prompt, first, second, len(images))
        parts = [part | {"text": reader.unmarked(part["text"])} if "text" in part else part for part in parts]
        columns = {"images": images, "chat_template_kwargs": {"enable_thinking": False}}
        asked, text = encode_shown([{"role": "user", "content": parts}], self.tokenizer, self.data, set(), columns)
        before, labels = label_tokens(self.tokenizer, text, self.name)
        trained = torch.zeros(len(before) + 1, dtype=torch.bool)
        trained[-1] = True
        one, other = (Sequence(torch.tensor([*before, label]), trained, images=asked.images) for label in labels)
        return one, other


def sees_images(model: str) -> bool:
    """Return whether a folder or Hub id names a vision-language model that has its processor."""
    from transformers import AutoConfig

    from posttrain.models import foreign
    from posttrain.models.adapters import adapter_base
    from posttrain.models.processor import reads_images

    try:
        if not reads_images(foreign.read(AutoConfig, adapter_base(model) or model)):
            return False
    except (OSError, ValueError):
        return False  # loading it says what is wrong
    return reader_of(load_tokenizer(model, judge_settings(model, torch.device("cpu")).model)) is not None
