"""Local judges: a chat model that names the better answer, or a reward model that scores both."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from posttrain.errors import ModelError, SettingsError
from posttrain.models.config_files import adapter_head, architectures
from posttrain.models.load import load_module, load_tokenizer
from posttrain.network.find_head import find_head
from posttrain.network.token_model import decoder_of
from posttrain.rewards.judge_prompt import LABELS, fill, read_template
from posttrain.rewards.model import reward_model
from posttrain.settings import Settings


class ModelJudge:
    """A causal chat model: ``(prompts, firsts, seconds)`` to the probability of label A against label B.

    Nothing is generated: the model's log-probs of the two labels as its first words are compared. None for a pair that
    is too long for the model. Raises ModelError for a model that cannot chat.
    """

    def __init__(self, model: str, template: str | None = None, batch_size: int = 8, device: str | None = None):
        chosen = judge_device(device)
        settings = judge_settings(model, chosen)
        self.template = read_template(template)
        self.tokenizer = load_tokenizer(model, settings.model)
        if not self.tokenizer.chat_template:
            raise ModelError(f"The judge '{model}' has no chat template. Expected a model that was trained to chat.")
        module = load_module(model, settings.model, chosen, "vocabulary", self.tokenizer)
        self.model = module.eval().requires_grad_(False)
        self.head = find_head(self.model)
        self.name = model
        self.batch_size = batch_size
        self.longest = getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or math.inf

    def __call__(self, prompts: list[Any], firsts: list[str], seconds: list[str]) -> list[float | None]:
        """Return the probabilities that the first answers are better."""
        rows = [self._tokens(fill(self.template, *pair)) for pair in zip(prompts, firsts, seconds, strict=True)]
        fitting = [place for place, (ids, _) in enumerate(rows) if len(ids) <= self.longest]
        fitting.sort(key=lambda place: len(rows[place][0]))
        found: list[float | None] = [None] * len(rows)
        for start in range(0, len(fitting), self.batch_size):
            places = fitting[start : start + self.batch_size]
            for place, value in zip(places, self._compare([rows[place] for place in places]), strict=True):
                found[place] = value
        return found

    def _tokens(self, text: str) -> tuple[list[int], list[int]]:
        """Return the tokens before the two labels differ, and the next token of each label."""
        messages = [{"role": "user", "content": text}]
        # Templates of reasoning models write an empty thought then; others ignore the name.
        asked = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False, enable_thinking=False
        )
        return label_tokens(self.tokenizer, asked, self.name)

    @torch.no_grad()
    def _compare(self, rows: list[tuple[list[int], list[int]]]) -> list[float]:
        lengths = torch.tensor([len(ids) for ids, _ in rows])  # (b,)
        ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)  # (b, w)
        for place, (row, _) in enumerate(rows):
            ids[place, : len(row)] = torch.tensor(row)
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()  # (b, w)
        device = self.model.device
        decoder = decoder_of(self.model)
        states = decoder(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).last_hidden_state
        last = states[torch.arange(len(rows), device=device), lengths.to(device) - 1]  # (b, H)
        logits = self.head.logits(last).float().cpu()  # (b, V)
        pairs = logits.gather(1, torch.tensor([labels for _, labels in rows]))  # (b, 2)
        return torch.sigmoid(pairs[:, 0] - pairs[:, 1]).tolist()


class RewardJudge:
    """A reward model: ``(prompts, firsts, seconds)`` to the sigmoid of the difference of the answers' scores.

    One that reads images is shown those of the prompts; another refuses them.
    """

    def __init__(self, folder: str, batch_size: int = 16, device: str | None = None):
        self.score = reward_model(Path(folder), batch_size, judge_device(device))

    def __call__(
        self, prompts: list[Any], firsts: list[str], seconds: list[str], images: list[list[Any]] | None = None
    ) -> list[float]:
        """Return the probabilities that the first answers are better, by the Bradley-Terry model."""
        shown = () if images is None else ([*images, *images],)
        values = self.score([*prompts, *prompts], [*firsts, *seconds], *shown)
        scores = torch.tensor(values, dtype=torch.float64)  # (2P,)
        return torch.sigmoid(scores[: len(prompts)] - scores[len(prompts) :]).tolist()


def judge_settings(model: str, device: torch.device) -> Settings:
    """Return the settings with which a model is loaded as a judge."""
    dtype: Any = "bfloat16" if device.type == "cuda" else "float32"
    return Settings(model=model, dtype=dtype, device=str(device), packing=False)


def label_tokens(tokenizer: Any, asked: str, name: str) -> tuple[list[int], list[int]]:
    """Return the tokens of a question before the two labels differ, and the next token of each label."""
    first, second = (tokenizer(asked + label, add_special_tokens=False)["input_ids"] for label in LABELS)
    parting = next((k for k, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), None)
    if parting is None:
        raise ModelError(f"The tokenizer of the judge '{name}' cannot tell 'A' from 'B'. Use another model.")
    return first[:parting], [first[parting], second[parting]]


def judge_device(name: str | None) -> torch.device:
    """Return the named device, or the best one. Raises SettingsError."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):  # torch raises these for a device that it lacks
        raise SettingsError(f"judge-options device is '{name}', which this machine does not have.") from None
    return device


def has_reward_head(folder: str) -> bool:
    """Whether a folder contains a reward model rather than a language model; an adapter's configuration tells."""
    path = Path(folder).expanduser()
    try:
        if (path / "adapter_config.json").is_file():
            return adapter_head(path) == "score"
        kinds = architectures(path) if (path / "config.json").is_file() else []
    except ModelError as error:
        raise ModelError(f"judge '{folder}': {error}") from None
    return any("SequenceClassification" in kind or kind.endswith("RewardModel") for kind in kinds)
