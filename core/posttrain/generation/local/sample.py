"""Completions in the making, and what ends them."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from posttrain.contract.generation import Completion
from posttrain.contract.images import Image
from posttrain.contract.views import Sequence
from posttrain.errors import RunFailed


@dataclass
class Sample:
    """One completion in the making."""

    index: int
    """Place of its prompt among all prompts."""
    prompt: Tensor
    """``(p,)`` int64."""
    random: random.Random
    limit: int
    """Tokens it may have."""
    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    finished: bool = False
    images: tuple[Image, ...] = ()
    """The pictures of its prompt."""
    shift: int = 0
    """By how much the positions of its tokens differ from their places in the text, for those pictures."""

    @property
    def alive(self) -> bool:
        """Whether it still grows."""
        return not self.finished and len(self.ids) < self.limit

    @property
    def length(self) -> int:
        """Tokens of the prompt and the completion so far."""
        return self.prompt.numel() + len(self.ids)

    @property
    def text(self) -> Tensor:
        """Prompt and completion so far, ``(length,)``."""
        return torch.cat([self.prompt, torch.tensor(self.ids, dtype=torch.long)])

    @property
    def shown(self) -> Sequence:
        """Prompt and completion so far, with the pictures."""
        return self.shown_as(self.text)

    def shown_as(self, text: Tensor) -> Sequence:
        """A text that begins with the prompt, with the pictures; behind the prompt it is as if learnt."""
        return Sequence(text, torch.arange(text.numel()) >= self.prompt.numel(), images=self.images)

    def append(self, token: int, logp: float, stops: Stops, version: int) -> None:
        """Add a token that weights of ``version`` made. Raises RunFailed where its log-probability is no number."""
        if not math.isfinite(logp):
            raise RunFailed(
                f"The model gives token {len(self.ids)} of an answer to prompt {self.index} the log-probability "
                f"{logp}: its weights are broken. Lower --learning-rate and go on from an earlier checkpoint."
            )
        self.ids.append(token)
        self.logps.append(logp)
        self.versions.append(version)
        self.finished = stops.reached(self.ids)

    def completion(self, tokenizer: Any) -> Completion:
        """The answer as it is handed out."""
        return Completion(
            ids=torch.tensor(self.ids, dtype=torch.long),  # (t,)
            logps=torch.tensor(self.logps, dtype=torch.float32),  # (t,)
            finished=self.finished,
            text=tokenizer.decode(self.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False),
            versions=None if -1 in self.versions else torch.tensor(self.versions, dtype=torch.int32),  # (t,)
        )


@dataclass(frozen=True)
class Stops:
    """What ends a completion: tokens, and strings anywhere in its text."""

    ids: frozenset[int]
    strings: tuple[str, ...]
    tokenizer: Any

    def reached(self, ids: list[int]) -> bool:
        """Whether the newest of ``ids`` is a stop token or the end of a stop string."""
        if ids[-1] in self.ids or not self.strings:
            return ids[-1] in self.ids
        # A token is at least one byte, and up to 4 of them may make one character at the cut.
        tail = ids[-(max(len(text.encode()) for text in self.strings) + 4) :]
        decoded = self.tokenizer.decode(tail, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return any(text in decoded for text in self.strings)
