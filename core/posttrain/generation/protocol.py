"""What every generation backend takes and gives back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from posttrain.errors import SettingsError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. Raises SettingsError for values no sampler can take."""

    max_new_tokens: int
    """Longest completion, in tokens."""
    temperature: float = 1.0
    """Divides the logits; 0 is greedy."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens that holds this much probability; 1 is all."""
    top_k: int = 0
    """Sample from the k likeliest tokens; 0 is all."""
    stop: tuple[str, ...] = ()
    """Strings that end a completion; they stay part of it."""
    greedy: bool = False
    """Take the likeliest token; seeds have no effect."""

    def __post_init__(self):
        if self.max_new_tokens < 1:
            raise SettingsError(f"max-new-tokens is {self.max_new_tokens}. It must be 1 or more.")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise SettingsError(f"temperature is {self.temperature}. It must be 0 (greedy) or a positive number.")
        if not 0 < self.top_p <= 1:
            raise SettingsError(f"top-p is {self.top_p}. It must be above 0 and at most 1 (1 is off).")
        if self.top_k < 0:
            raise SettingsError(f"top-k is {self.top_k}. It must be 0 (off) or more.")
        if isinstance(self.stop, str) or not all(isinstance(text, str) and text for text in self.stop):
            raise SettingsError(f"stop is {self.stop!r}. It must be a list of strings that are not empty.")
        object.__setattr__(self, "stop", tuple(self.stop))
        if self.temperature == 0:
            object.__setattr__(self, "greedy", True)

    @property
    def logp_temperature(self) -> float:
        """Temperature at which log-probs are taken: ``temperature``, or 1 where that is 0."""
        return self.temperature or 1.0


@dataclass
class Completion:
    """One sampled answer. Its tensors lie on the CPU and may enter a loss."""

    ids: Tensor
    """Tokens as they were sampled, ``(t,)`` int64, with the stop token if one ended it. Never made from ``text``."""
    logps: Tensor
    """Log-probs of these tokens under the full distribution at this temperature, before top-p and top-k, ``(t,)``
    float32."""
    finished: bool
    """False where it was cut off: at ``max_new_tokens``, or at the last position the model knows."""
    text: str
    """``ids`` decoded without special tokens."""


class Generator(Protocol):
    """A generation backend."""

    def generate(self, prompts: list[Tensor], sampling: Sampling, seeds: list[list[int]]) -> list[list[Completion]]:
        """Complete each prompt ``(n,)`` int64 once per seed in ``seeds[i]``; answers in the order of the seeds.

        The same prompt, seed and weights give the same completion, whatever else is asked for in the same call.
        """
        ...
