"""Running completions, and what ends them."""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from posttrain.contract import experts
from posttrain.contract.generation import Completion
from posttrain.contract.images import Image
from posttrain.contract.views import Sequence
from posttrain.errors import RunFailed
from posttrain.generation.local.lookup import Lookup


@dataclass
class Sample:
    """One running completion."""

    index: int
    """Index of its prompt among all prompts."""
    prompt: Tensor
    """``(p,)`` int64."""
    random: random.Random
    limit: int
    """Limit of its tokens."""
    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    finished: bool = False
    images: tuple[Image, ...] = ()
    """Images of its prompt."""
    shift: int = 0
    """How far the positions of its tokens exceed their places in the text, because of its images."""
    parts: list[Tensor] = field(default_factory=list)
    """Experts of the tokens that were read, ``(n_i, layers, choices)``, in order."""
    lookup: Lookup | None = None
    """Where the tokens that follow are looked up, with speculation by n-grams."""
    accepted: float = 0.5
    """Share of the tokens guessed for it that were right, the last ones weighing most."""
    draws: deque[tuple[float, float, float]] = field(default_factory=deque)
    """Random numbers of its next tokens, with a draft model."""

    @property
    def alive(self) -> bool:
        """Whether it may get more tokens."""
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
        """Prompt and completion so far, with the images."""
        return self.shown_as(self.text)

    def shown_as(self, text: Tensor) -> Sequence:
        """Return a text that begins with the prompt, with the images; tokens after the prompt count as trained."""
        return Sequence(text, torch.arange(text.numel()) >= self.prompt.numel(), images=self.images)

    def draw(self, ahead: int) -> tuple[float, float, float]:
        """Return the three random numbers of the token ``ahead`` places after the next one.

        They belong to the place: how many tokens were guessed, and how many of them were right, changes none.
        """
        while len(self.draws) <= ahead:
            self.draws.append((self.random.random(), self.random.random(), self.random.random()))
        return self.draws[ahead]

    def append(self, token: int, logp: float, stops: Stops, version: int) -> None:
        """Append a token that weights of ``version`` made. Raises RunFailed where its log-prob is not a number."""
        if not math.isfinite(logp):
            raise RunFailed(
                f"The model gives token {len(self.ids)} of an answer to prompt {self.index} the log-probability "
                f"{logp}: its weights are broken. Lower --learning-rate and go on from an earlier checkpoint."
            )
        self.ids.append(token)
        self.logps.append(logp)
        self.versions.append(version)
        if self.draws:
            self.draws.popleft()
        if self.lookup is not None:
            self.lookup.add(token)
        self.finished = stops.reached(self.ids)

    def note(self, found: Tensor, start: int = 0) -> None:
        """Note the experts ``(n, layers, choices)`` of the tokens from ``start`` on; the first ones noted are kept.

        A text that is read again keeps those with which its tokens were sampled.
        """
        known = sum(map(len, self.parts))
        if start + len(found) > known:
            self.parts.append(found[known - start :])

    @property
    def experts(self) -> Tensor | None:
        """Experts ``(length, layers, choices)`` of prompt and completion, unknown for the last token; None if none."""
        if not self.parts:
            return None
        found = experts.joined(self.parts)[: self.length - 1]
        return experts.joined([found, experts.unknown(self.length - len(found), found)])

    def completion(self, tokenizer: Any) -> Completion:
        """Build the finished completion."""
        return Completion(
            ids=torch.tensor(self.ids, dtype=torch.long),  # (t,)
            logps=torch.tensor(self.logps, dtype=torch.float32),  # (t,)
            finished=self.finished,
            text=tokenizer.decode(self.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False),
            versions=None if -1 in self.versions else torch.tensor(self.versions, dtype=torch.int32),  # (t,)
            experts=self.experts,
        )


@dataclass(frozen=True)
class Stops:
    """Ends of a completion: tokens, and strings anywhere in its text."""

    ids: frozenset[int]
    strings: tuple[str, ...]
    tokenizer: Any

    def reached(self, ids: list[int]) -> bool:
        """Whether the newest of ``ids`` is a stop token or ends a stop string."""
        if ids[-1] in self.ids or not self.strings:
            return ids[-1] in self.ids
        # A token is at least one byte, and up to 4 bytes may form one character at the cut.
        tail = ids[-(max(len(text.encode()) for text in self.strings) + 4) :]
        decoded = self.tokenizer.decode(tail, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return any(text in decoded for text in self.strings)
