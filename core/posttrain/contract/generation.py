"""What every generation backend takes and gives back: prompts, settings and weights in, completions out.

A backend is driven by one thread that calls ``accept``, ``pause``, ``resume``, ``drain``, ``revive`` and ``close``.
Where its ``abilities`` say so, ``generate`` may meanwhile be called from other threads, several at a time: that is how
rollouts run ahead of the trainer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

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
    continued: bool = False
    """A later call may go on from an answer: keep what the model has read of it, as far as memory allows."""

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
class Episode:
    """An answer of several turns: which tokens the model wrote, in which turn, and what came of them.

    ``t`` counts all tokens behind the prompt: what was sampled, and what the environment and the template put between.
    """

    prompt_ids: Tensor
    """Tokens ``(p,)`` of the prompt, with what the environment said first."""
    sampled: Tensor
    """Which tokens the model wrote, ``(t,)`` bool; these alone are learnt."""
    turn: Tensor
    """Turn of each token, ``(t,)`` int64, from 0."""
    rewards: list[float]
    """Reward of each turn; what is given for the whole episode is part of the last one's."""
    messages: list[dict[str, Any]]
    """All that was said behind the prompt, as messages."""
    end: str
    """Why it ended: "done", "turns", "tokens", "seconds", or "error"."""
    scored: bool = True
    """Whether the environment gave any reward; if not, the run's rewards alone count."""
    breaks: tuple[int, ...] = ()
    """Where in ``t`` texts of their own begin, with the whole conversation as the template shows it by then."""


@dataclass
class Completion:
    """One sampled answer. Its tensors lie on the CPU and may enter a loss."""

    ids: Tensor
    """Tokens as they were sampled, ``(t,)`` int64, with the stop token if one ended it. Never made from ``text``."""
    logps: Tensor
    """Log-probs of these tokens under the full distribution at this temperature, before top-p and top-k, ``(t,)``
    float32. Not a number where the backend does not know one: such a completion is not learnt from."""
    finished: bool
    """False where it was cut off: at ``max_new_tokens``, or at the last position the model knows."""
    text: str
    """``ids`` decoded without special tokens."""
    reason: str = ""
    """Why it ended: "stop" or "length". [from ``finished``]"""
    versions: Tensor | None = None
    """Version of the weights that made each token, ``(t,)`` int32, ascending; None where nobody counts."""
    episode: Episode | None = None
    """What it has beyond its tokens where an environment answered in between."""

    def __post_init__(self):
        if not self.reason:
            self.reason = "stop" if self.finished else "length"

    @property
    def count(self) -> int:
        """Number of tokens that were sampled; the others are an environment's."""
        return len(self.ids) if self.episode is None else int(self.episode.sampled.sum())

    @property
    def sampled_logps(self) -> Tensor:
        """Log-probs of the sampled tokens alone, ``(count,)``."""
        return self.logps if self.episode is None else self.logps[self.episode.sampled]


@dataclass(frozen=True)
class Weights:
    """Weights on their way to a generator, as version ``version``. Nothing is copied before ``tensors`` is called.

    "full": all that the model has, adapters merged into it where the backend says so (``Abilities.merged``).
    "adapter": the adapter's own tensors alone, by the names that peft saves them under.
    "changed": those of "full" that may differ from version ``base``; frozen ones are left out.
    """

    version: int
    kind: Literal["full", "adapter", "changed"]
    tensors: Callable[[], Iterator[tuple[str, Tensor]]]
    """Names as in the state of the transformers (or peft) model, and tensors wherever they lie."""
    base: int = -1
    """The version that "changed" changes."""
    adapter: dict[str, Any] | None = None
    """peft's configuration of the adapter, as in ``adapter_config.json``."""


@dataclass(frozen=True)
class Abilities:
    """What a backend can do; the core asks for nothing else."""

    own_weights: bool
    """Has weights of its own. If not, it sees the trainer's as they are, and accepting some is a mere number."""
    ahead: bool = False
    """``generate`` may be called from several threads while the trainer trains."""
    mid_sequence: bool = False
    """``accept`` may be called during ``generate``: later tokens are made by the new weights."""
    merged: bool = False
    """Knows the plain architecture only: "full" weights are to have adapters merged into them."""
    adapters: bool = False
    """Takes weights of the kind "adapter"."""
    sessions: bool = False
    """Has ``session``: others may join between two tokens, in the thread that asks."""
    exact: bool = False
    """Computes as the trainer does, so that log-probs of both differ by rounding alone."""
    images: bool = False


@dataclass(frozen=True)
class Health:
    """How a generator is."""

    version: int
    """Of the weights it has; -1 where they are none of ours, as after a start."""
    alive: bool = True
    running: int = 0
    """Completions in the making."""
    waiting: int = 0
    """Completions asked for that have no token yet."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What else the backend tells: address, memory, versions of its parts."""


class Generator(Protocol):
    """A generation backend. Raises GeneratorLost where its process or server is gone."""

    @property
    def abilities(self) -> Abilities:
        """What it can do; the same from start to end."""
        ...

    def generate(
        self,
        prompts: list[Tensor],
        sampling: Sampling,
        seeds: list[list[int]],
        images: list[list[Any]] | None = None,
    ) -> list[list[Completion]]:
        """Complete each prompt ``(n,)`` int64 once per seed in ``seeds[i]``; answers in the order of the seeds.

        The same prompt, seed and weights give the same completion, whatever else is asked for in the same call, where
        the backend can promise that. ``images`` are those of each prompt, in order. Waits while paused.
        """
        ...

    def accept(self, weights: Weights) -> None:
        """Sample from these weights from now on; returns when that is so.

        Without ``mid_sequence`` no completion may be in the making. Raises RunFailed for weights that do not fit.
        """
        ...

    def pause(self) -> None:
        """Make no token until ``resume``, and give back what only sampling needs; what is in the making is kept."""
        ...

    def resume(self) -> None:
        """Undo ``pause``."""
        ...

    def drain(self) -> None:
        """Return when nothing is in the making."""
        ...

    def health(self) -> Health:
        """How it is; ``alive`` is False where it is gone, and nothing is raised."""
        ...

    def revive(self) -> None:
        """Start anew what is gone, with whatever weights it starts with. Raises GeneratorLost where that fails."""
        ...

    def close(self) -> None:
        """End processes and free memory; calls that wait for completions raise GeneratorLost."""
        ...
