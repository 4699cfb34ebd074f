"""Judges in memory: a chat model that names the better answer, or a reward model that scores both."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from posttrain.errors import ModelError, SettingsError
from posttrain.models.load import load_module, load_tokenizer
from posttrain.network.find_head import find_head
from posttrain.network.token_model import decoder_of
from posttrain.rewards.judge_prompt import LABELS, fill, read_template
from posttrain.rewards.model import reward_model
from posttrain.settings import Settings


class ModelJudge:
    """A causal chat model: ``(prompts, firsts, seconds)`` to the probability of label A against label B.

    Nothing is generated: the model's log-probs of the two labels as the first thing it says are compared. None for a
    pair that is too long for the model. Raises ModelError for a model that cannot chat.
    """

    def __init__(self, model: str, template: str | None = None, batch_size: int = 8, device: str | None = None):
        chosen = _device(device)
        dtype: Any = "bfloat16" if chosen.type == "cuda" else "float32"
        settings = Settings(model=model, dtype=dtype, device=str(chosen), packing=False)
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
        """Probabilities that the first answers are better."""
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
        """Tokens up to where the two labels part, and the label tokens that come next there."""
        messages = [{"role": "user", "content": text}]
        # Templates of models that think first write an empty thought then; others do not know the name.
        asked = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False, enable_thinking=False
        )
        first, second = (self.tokenizer(asked + label, add_special_tokens=False)["input_ids"] for label in LABELS)
        parting = next((k for k, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), None)
        if parting is None:
            raise ModelError(f"The tokenizer of the judge '{self.name}' cannot tell 'A' from 'B'. Use another model.")
        return first[:parting], [first[parting], second[parting]]

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
    """A reward model: ``(prompts, firsts, seconds)`` to the sigmoid of the difference of the answers' scores."""

    def __init__(self, folder: str, batch_size: int = 16, device: str | None = None):
        self.score = reward_model(Path(folder), batch_size, _device(device))

    def __call__(self, prompts: list[Any], firsts: list[str], seconds: list[str]) -> list[float]:
        """Probabilities that the first answers are better, as Bradley and Terry have them."""
        scores = torch.tensor(self.score([*prompts, *prompts], [*firsts, *seconds]), dtype=torch.float64)  # (2P,)
        return torch.sigmoid(scores[: len(prompts)] - scores[len(prompts) :]).tolist()


def _device(name: str | None) -> torch.device:
    """The named device, or the best there is. Raises SettingsError."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):  # what torch raises for a device it lacks
        raise SettingsError(f"judge-options device is '{name}', which this machine does not have.") from None
    return device


def has_reward_head(folder: str) -> bool:
    """Whether a folder on disk holds a reward model rather than a language model; an adapter says it itself."""
    path = Path(folder).expanduser()
    for name, field in (("adapter_config.json", "task_type"), ("config.json", "architectures")):
        if (path / name).is_file():
            try:
                value = json.loads((path / name).read_text(encoding="utf-8")).get(field) or ""
            except ValueError as error:
                raise ModelError(f"judge '{folder}': {name} is not valid JSON ({error}).") from None
            kinds = [value] if isinstance(value, str) else value
            return any(
                kind == "SEQ_CLS" or "SequenceClassification" in kind or kind.endswith("RewardModel") for kind in kinds
            )
    return False
