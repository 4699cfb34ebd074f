"""Interface of generation backends: prompts, sampling options and weights in, completions out.

One thread drives a backend and calls ``accept``, ``pause``, ``resume``, ``drain``, ``revive`` and ``close``. Where its
``abilities`` allow it, other threads may call ``generate`` meanwhile, several at a time: that is how rollouts run ahead
of the trainer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from posttrain.errors import SettingsError

if TYPE_CHECKING:
    from torch import Tensor

    from posttrain.contract.images import Image


@dataclass(frozen=True)
class Sampling:
    """Sampling options. Raises SettingsError for values that no sampler can take."""

    max_new_tokens: int
    """Longest completion, in tokens."""
    temperature: float = 1.0
    """Divides the logits; 0 is greedy."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens with at least this probability; 1 is all."""
    top_k: int = 0
    """Sample from the k likeliest tokens; 0 is all."""
    stop: tuple[str, ...] = ()
    """Strings that end a completion; they stay part of it."""
    greedy: bool = False
    """Take the likeliest token; seeds have no effect."""
    continued: bool = False
    """A later call may extend an answer: keep its keys and values as far as memory allows."""

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
        """Temperature of the log-probs: ``temperature``, or 1 where that is 0."""
        return self.temperature or 1.0


@dataclass
class Episode:
    """A multi-turn answer: tokens that the model wrote, their turns and rewards.

    ``t`` counts all tokens behind the prompt: sampled ones, and those of the environment and the template in between.
    """

    prompt_ids: Tensor
    """Tokens ``(p,)`` of the prompt, including the environment's first observation."""
    sampled: Tensor
    """True for tokens that the model wrote, ``(t,)`` bool; only these are trained on."""
    turn: Tensor
    """Turn of each token, ``(t,)`` int64, from 0."""
    rewards: list[float]
    """Reward of each turn; a reward of the whole episode is added to the last one."""
    messages: list[dict[str, Any]]
    """Messages after the prompt."""
    end: str
    """Why the episode ended: "done", "turns", "tokens", "seconds", or "error"."""
    scored: bool = True
    """Whether the environment gave any reward; if not, only the run's rewards count."""
    breaks: tuple[int, ...] = ()
    """Indices in ``t`` at which a separate text begins: the conversation so far, as the template then renders it."""
    images: tuple[Image, ...] = ()
    """Images of the prompt and of the environment, as in a ``Sequence`` of prompt and answer; one that a separate text
    shows again has the same ``place``."""


@dataclass
class Completion:
    """One sampled answer. Its tensors are on the CPU and may enter a loss."""

    ids: Tensor
    """Sampled tokens, ``(t,)`` int64, including the stop token if one ended it. Never made from ``text``."""
    logps: Tensor
    """Log-probs of these tokens under the full distribution at this temperature, before top-p and top-k, ``(t,)``
    float32. NaN where the backend does not know one: such a completion is not trained on."""
    finished: bool
    """False if cut off at ``max_new_tokens`` or at the model's last position."""
    text: str
    """``ids`` decoded without special tokens."""
    reason: str = ""
    """Why the completion ended: "stop" or "length". [from ``finished``]"""
    versions: Tensor | None = None
    """Version of the weights that sampled each token, ``(t,)`` int32, ascending; None without versions."""
    episode: Episode | None = None
    """Turns and rewards where an environment answered in between."""
    experts: Tensor | None = None
    """Experts chosen for each token of the prompt and of ``ids``, ``(p + t, layers, choices)`` int8 or int16, -1 for
    tokens that the model never read, such as the last; None where the backend does not record them."""

    def __post_init__(self):
        if not self.reason:
            self.reason = "stop" if self.finished else "length"

    @property
    def count(self) -> int:
        """Number of sampled tokens; the others are the environment's."""
        return len(self.ids) if self.episode is None else int(self.episode.sampled.sum())

    @property
    def sampled_logps(self) -> Tensor:
        """Log-probs of the sampled tokens alone, ``(count,)``."""
        return self.logps if self.episode is None else self.logps[self.episode.sampled]


@dataclass(frozen=True)
class Weights:
    """Weights for a generator, as version ``version``. Nothing is copied before ``tensors`` is called.

    "full": all weights, adapters merged into them where the backend needs that (``Abilities.merged``).
    "adapter": only the adapter's tensors, under the names that peft saves them by.
    "changed": those of "full" that may differ from version ``base``, without frozen ones.
    """

    version: int
    kind: Literal["full", "adapter", "changed"]
    tensors: Callable[[], Iterator[tuple[str, Tensor]]]
    """Names as in the state dict of the transformers (or peft) model, and tensors on any device."""
    base: int = -1
    """Version that "changed" is relative to."""
    adapter: dict[str, Any] | None = None
    """peft's configuration of the adapter, as in ``adapter_config.json``."""


@dataclass(frozen=True)
class Abilities:
    """Abilities of a backend, all that the core asks it for."""

    own_weights: bool
    """Has its own copy of the weights. If not, it reads the trainer's, and ``accept`` only stores the version."""
    ahead: bool = False
    """``generate`` may be called from several threads while the trainer trains."""
    mid_sequence: bool = False
    """``accept`` may be called during ``generate``: later tokens come from the new weights."""
    merged: bool = False
    """Knows the base architecture only: adapters are merged into "full" weights."""
    adapters: bool = False
    """Takes weights of the kind "adapter"."""
    sessions: bool = False
    """Has ``session``: other requests may join between two tokens, in the calling thread."""
    exact: bool = False
    """Computes as the trainer does, so that log-probs of both differ by rounding only."""
    images: bool = False


@dataclass(frozen=True)
class Health:
    """State of a generator."""

    version: int
    """Version of its weights; -1 for weights that the trainer did not send, as after a start."""
    alive: bool = True
    running: int = 0
    """Completions being generated."""
    waiting: int = 0
    """Requested completions without a token yet."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Further facts of the backend: address, memory, versions of its parts."""


class Generator(Protocol):
    """A generation backend. Raises GeneratorLost where its process or server is gone."""

    @property
    def abilities(self) -> Abilities:
        """Abilities of the backend, constant from start to end."""
        ...

    def generate(
        self,
        prompts: list[Tensor],
        sampling: Sampling,
        seeds: list[list[int]],
        images: list[list[Any]] | None = None,
    ) -> list[list[Completion]]:
        """Complete each prompt ``(n,)`` int64 once per seed in ``seeds[i]``; answers in the order of the seeds.

        The same prompt, seed and weights give the same completion, whatever else the call asks for, where the backend
        can promise that. ``images`` are those of each prompt, in order. Waits while paused.
        """
        ...

    def accept(self, weights: Weights) -> None:
        """Sample from these weights from now on; return once that holds.

        Without ``mid_sequence`` no completion may be in progress. Raises RunFailed for weights that do not fit.
        """
        ...

    def pause(self) -> None:
        """Generate no token until ``resume``, and free what only sampling needs; completions in progress are kept."""
        ...

    def resume(self) -> None:
        """Undo ``pause``."""
        ...

    def drain(self) -> None:
        """Return when no completion is in progress."""
        ...

    def health(self) -> Health:
        """Return the generator's state; ``alive`` is False where it is gone, and nothing is raised."""
        ...

    def revive(self) -> None:
        """Restart a lost generator, with whatever weights it starts with. Raises GeneratorLost on failure."""
        ...

    def close(self) -> None:
        """End processes and free memory; waiting ``generate`` calls raise GeneratorLost."""
        ...
