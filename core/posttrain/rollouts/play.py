"""One running episode: its tokens and images so far, and the completion that they become."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from posttrain.contract.experts import joined, unknown
from posttrain.contract.generation import Completion, Episode
from posttrain.contract.images import Image
from posttrain.contract.views import Sequence
from posttrain.data.tokens.conversation import Conversation
from posttrain.data.tokens.turns import Message, Turns
from posttrain.environments.environment import close


@dataclass(eq=False)
class Play:
    """State of one running episode."""

    row: dict[str, Any]
    seed: int
    prompt: Sequence
    turns: Turns
    talk: Conversation
    environment: Any = None
    messages: list[Message] = field(default_factory=list)
    """Messages after the prompt."""
    ids: list[Tensor] = field(default_factory=list)
    logps: list[Tensor] = field(default_factory=list)
    sampled: list[Tensor] = field(default_factory=list)
    experts: Tensor | None = None
    """Experts ``(n, layers, choices)`` of the first n tokens of the prompt and what follows; None without any."""
    numbers: list[Tensor] = field(default_factory=list)
    """Turn of each token."""
    versions: list[Tensor] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    breaks: list[int] = field(default_factory=list)
    """Starts of separate texts, in tokens after the prompt."""
    images: list[Image] = field(default_factory=list)
    """Images after the prompt."""
    scored: bool = False
    end: str = ""
    text: str = ""
    began: float = field(default_factory=time.monotonic)
    since: float = math.inf
    """Time at which its environment began to answer; infinite while it waits for a worker."""

    @property
    def turn(self) -> int:
        """Number of turns so far."""
        return len(self.rewards)

    @property
    def length(self) -> int:
        """Number of tokens after the prompt."""
        return sum(len(part) for part in self.ids)

    @property
    def context(self) -> Sequence:
        """Tokens and images before the next turn."""
        ids = torch.cat([self.prompt.ids, *self.ids])
        breaks = tuple(len(self.prompt) + place for place in self.breaks)
        known = (*self.prompt.images, *self.images)
        return Sequence(ids, torch.zeros(len(ids), dtype=torch.bool), breaks=breaks, images=known).texts[-1]

    def open(self, piece: Sequence) -> None:
        """Append what the environment writes before the first turn to the prompt, with its images."""
        self.prompt = _joined(self.prompt, piece)

    def followed(self, piece: Sequence) -> Sequence:
        """Return the tokens and images before the next turn, and those of ``piece`` behind them."""
        return _joined(self.context, piece)

    def show(self, piece: Sequence, turn: int) -> None:
        """Append what the environment and the template write, with its images."""
        self.images += _moved(piece.images, len(self.prompt) + self.length)
        self.add(piece.ids, None, None, turn)

    def add(self, ids: Tensor, logps: Tensor | None, version: Tensor | None, turn: int) -> None:
        """Append tokens ``(n,)``: sampled ones with log-probs, or the environment's with None."""
        if not len(ids):
            return
        self.ids.append(ids)
        self.logps.append(torch.zeros(len(ids)) if logps is None else logps)
        self.sampled.append(torch.full((len(ids),), logps is not None))
        self.numbers.append(torch.full((len(ids),), turn, dtype=torch.long))
        if version is not None:
            self.versions.append(version)
        elif self.versions:  # nobody sampled them: as old as the token before
            self.versions.append(self.versions[-1][-1:].expand(len(ids)))

    def note(self, turn: Completion) -> None:
        """Note the experts of a turn, before its tokens are added; those of tokens of earlier turns stay."""
        if turn.experts is None:
            return
        start = len(self.prompt) + self.breaks[-1] if self.breaks else 0
        known = self.experts if self.experts is not None else turn.experts[:0]
        if start > len(known):  # a separate text: nobody read the end of the one before
            known = joined([known, unknown(start - len(known), known)])
        self.experts = joined([known, turn.experts[len(known) - start : -1]])

    def close(self) -> None:
        """Close the environment, once."""
        environment, self.environment = self.environment, None
        if environment is not None:
            close(environment)

    def completion(self) -> Completion:
        """Return the whole episode as one completion."""
        counted = sum(map(len, self.versions)) == self.length and self.versions
        experts = self.experts
        if experts is not None:
            experts = joined([experts, unknown(len(self.prompt) + self.length - len(experts), experts)])
        return Completion(
            torch.cat(self.ids),
            torch.cat(self.logps),
            self.end in ("done", "turns"),
            self.text,
            {"done": "stop"}.get(self.end, self.end),
            torch.cat(self.versions) if counted else None,
            Episode(
                self.prompt.ids,
                torch.cat(self.sampled),
                torch.cat(self.numbers),
                self.rewards,
                self.messages,
                self.end,
                self.scored,
                tuple(self.breaks),
                (*self.prompt.images, *self.images),
            ),
            experts,
        )


def _joined(before: Sequence, piece: Sequence) -> Sequence:
    ids = torch.cat([before.ids, piece.ids])
    images = (*before.images, *_moved(piece.images, len(before)))
    return Sequence(ids, torch.zeros(len(ids), dtype=torch.bool), images=images)


def _moved(images: tuple[Image, ...], by: int) -> list[Image]:
    return [replace(image, start=image.start + by) for image in images]
