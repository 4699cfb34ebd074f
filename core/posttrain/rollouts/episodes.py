"""Answers of several turns: the model writes, the environment answers, until the episode ends.

An episode whose environment is slow holds up no other: those that have been answered go on sampling. A turn's tokens
depend on the run's seed, the prompt, the sample and the turn alone, never on which environment was faster; the rounding
of their log-probs does, since that decides which turns are sampled together.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

import torch
from torch import Tensor

from posttrain.contract.generation import Completion, Episode, Generator, Sampling
from posttrain.contract.messages import is_messages
from posttrain.data.tokens.turns import Message, Turns
from posttrain.environments.environment import Observation, begin, close, observation_of
from posttrain.errors import DataError, RunFailed, SettingsError
from posttrain.rollouts.seeds import seed_of
from posttrain.rollouts.turn_samplers import Asked, turn_sampler
from posttrain.servers.daemon_pool import DaemonPool
from posttrain.settings.episodes import EpisodeSettings


@dataclass(eq=False)
class _Play:
    """One episode while it is played."""

    row: dict[str, Any]
    seed: int
    chat: bool
    prompt: Tensor  # (p,)
    turns: Turns
    environment: Any = None
    history: list[Message] = field(default_factory=list)
    """The conversation as the template is shown it."""
    messages: list[Message] = field(default_factory=list)
    ids: list[Tensor] = field(default_factory=list)
    logps: list[Tensor] = field(default_factory=list)
    sampled: list[Tensor] = field(default_factory=list)
    numbers: list[Tensor] = field(default_factory=list)
    """Turn of each token."""
    versions: list[Tensor] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    breaks: list[int] = field(default_factory=list)
    """Where texts of their own begin, in tokens behind the prompt."""
    scored: bool = False
    end: str = ""
    text: str = ""
    began: float = field(default_factory=time.monotonic)
    since: float = math.inf
    """When its environment began to answer; never while it waits for a worker."""

    @property
    def turn(self) -> int:
        return len(self.rewards)

    @property
    def length(self) -> int:
        return sum(len(part) for part in self.ids)

    @property
    def context(self) -> Tensor:
        """What the next turn is sampled behind, ``(n,)``."""
        if not self.breaks:
            return torch.cat([self.prompt, *self.ids])
        return torch.cat(self.ids)[self.breaks[-1] :]

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
        elif self.versions:  # made by nobody: as old as what it follows
            self.versions.append(self.versions[-1][-1:].expand(len(ids)))

    def close(self) -> None:
        """Give back what the environment holds, once."""
        environment, self.environment = self.environment, None
        if environment is not None:
            close(environment)

    def completion(self) -> Completion:
        """The whole episode as one completion."""
        counted = sum(map(len, self.versions)) == self.length and self.versions
        return Completion(
            torch.cat(self.ids),
            torch.cat(self.logps),
            self.end in ("done", "turns"),
            self.text,
            {"done": "stop"}.get(self.end, self.end),
            torch.cat(self.versions) if counted else None,
            Episode(
                self.prompt,
                torch.cat(self.sampled),
                torch.cat(self.numbers),
                self.rewards,
                self.messages,
                self.end,
                self.scored,
                tuple(self.breaks),
            ),
        )


class _Events:
    """What other threads have done: begun or answered an episode, or sampled a turn of it."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[tuple[str, _Play, Future[Any]]] = SimpleQueue()
        self.open: dict[Future[Any], tuple[str, _Play]] = {}
        """What environments are at, but for those that were given up."""

    def watch(self, what: str, play: _Play, future: Future[Any]) -> None:
        """Tell of ``future`` once it is done."""
        self.open[future] = what, play
        future.add_done_callback(lambda done: self._queue.put((what, play, done)))

    def sampled(self, future: Future[Completion], play: _Play) -> None:
        """A turn was sampled; called in the thread that did."""
        self._queue.put(("sample", play, future))

    def since(self, seconds: float) -> list[tuple[str, _Play, Future[Any]]]:
        """What has happened since the last call; waits ``seconds`` at most for anything to happen."""
        found = []
        try:
            found.append(self._queue.get(timeout=seconds) if seconds else self._queue.get_nowait())
            while True:
                found.append(self._queue.get_nowait())
        except Empty:
            pass
        return [one for one in found if one[0] == "sample" or self.open.pop(one[2], None) is not None]


@dataclass
class EpisodePlayer:
    """Plays episodes with a generator. ``make`` gives a new environment for each."""

    make: Callable[[], Any]
    turns: Turns
    settings: EpisodeSettings
    positions: int | None
    """Tokens that the model can read, the prompt's included; None for no limit."""
    say: Callable[[str], None] = print
    _told: bool = False

    def play(
        self, generator: Generator, prompts: list[Tensor], rows: list[dict[str, Any]], sampling: Sampling,
        seeds: list[list[int]],
    ) -> list[list[Completion]]:  # fmt: skip
        """Complete each prompt ``(n,)`` once per seed; answers in the order of the seeds. Raises RunFailed."""
        plays = [
            [_Play(row, seed, is_messages(row.get("prompt")), prompt, self.turns.of_row(row)) for seed in own]
            for prompt, row, own in zip(prompts, rows, seeds, strict=True)
        ]
        flat = [play for own in plays for play in own]
        pool = DaemonPool(self.settings.tool_workers, "environments")
        try:
            self._play_all(generator, flat, sampling, pool)
        finally:
            pool.shutdown()
            for play in flat:
                play.close()
        return [[play.completion() for play in own] for own in plays]

    def _play_all(self, generator: Generator, plays: list[_Play], sampling: Sampling, pool: DaemonPool) -> None:
        """Begin, sample and answer, whatever can go on; an episode that ends makes room for one that waits."""
        most = min(self.settings.episodes_at_once or len(plays), len(plays)) or 1
        waiting, events = deque(plays), _Events()
        running: set[_Play] = set()
        with turn_sampler(generator, sampling, most, events.sampled) as sampler:
            while waiting or running:
                while waiting and len(running) < most:
                    play = waiting.popleft()
                    running.add(play)
                    events.watch("begin", play, pool.submit(self._begin, play))
                turns, ready = sampler.advance() if sampler.busy else [], []
                for what, play, future in events.since(0.0 if sampler.busy or turns else self._patience()):
                    if what == "sample":
                        turns.append((play, future.result()))
                    elif self._began(play, future) if what == "begin" else self._continue(play, future):
                        ready.append(play)
                for play, turn in turns:
                    if self._take(play, turn):
                        play.since = math.inf
                        events.watch("answer", play, pool.submit(self._answer, play))
                self._give_up(events)
                sampler.ask([self._asked(play, sampling) for play in ready])
                for play in [play for play in running if play.end]:
                    running.remove(play)
                    play.close()

    def _patience(self) -> float:
        """Seconds to wait for anything to happen before it is looked for an environment that takes too long."""
        return min(1.0, self.settings.tool_timeout or 1.0)

    def _give_up(self, events: _Events) -> None:
        """End the wait for environments that take too long."""
        limit = self.settings.tool_timeout
        for future, (what, play) in list(events.open.items()) if limit else []:
            if time.monotonic() - play.since > limit and not future.done():
                del events.open[future]
                error = TimeoutError(f"no answer in {limit:g} seconds")
                try:
                    if what == "begin":  # an episode in which nothing was sampled is none
                        raise _not_begun(play, error)
                    self._failed(play, error)
                finally:
                    play.environment = None  # it is still at work, and closing it might wait as long

    def _begin(self, play: _Play) -> Any:
        """What the environment says first; runs in a thread of its own."""
        play.since = time.monotonic()
        play.environment = self.make()
        return begin(play.environment, play.row, play.seed)

    def _began(self, play: _Play, future: Future[Any]) -> bool:
        """Put what the environment said first behind the prompt. Raises RunFailed where it does not begin."""
        try:
            said: Any = future.result()
        except (DataError, SettingsError, RunFailed):
            raise
        except Exception as error:
            raise _not_begun(play, error) from error
        play.began = time.monotonic()
        play.history = list(play.row["prompt"]) if play.chat else []
        if said:
            opening = _as_messages(said) if play.chat else []
            play.history += opening
            play.prompt = (
                play.turns.opening(play.history) if play.chat else torch.cat([play.prompt, play.turns.text(said)])
            )
        return True

    def _asked(self, play: _Play, sampling: Sampling) -> Asked:
        """What is asked of the generator for the next turn."""
        seed = seed_of(play.seed, "turn", play.turn) if play.turn else play.seed
        return play, play.context, seed, self._room(play, sampling)

    def _room(self, play: _Play, sampling: Sampling) -> int:
        """Tokens that the next turn may have."""
        left = [sampling.max_new_tokens]
        if self.positions is not None:
            left.append(self.positions - len(play.context))
        if self.settings.episode_tokens is not None:
            left.append(self.settings.episode_tokens - (len(play.context) - len(play.prompt)))
        return max(1, min(left))

    def _take(self, play: _Play, turn: Completion) -> bool:
        """Append what was sampled; whether the environment is to answer it."""
        play.add(turn.ids, turn.logps, turn.versions, play.turn)
        play.text = turn.text
        said: Message = {"role": "assistant", "content": turn.text}
        if play.chat:
            said = play.turns.message(turn.ids)
            play.text = str(said.get("content") or "")
        play.messages.append(said)
        play.rewards.append(0.0)
        if not turn.finished:
            play.end = "tokens"
            return False
        return True

    def _answer(self, play: _Play) -> Observation:
        """What the environment says; runs in a thread of its own."""
        play.since = time.monotonic()
        step = play.environment.step
        return observation_of(step(play.messages[-1]), f"step of {type(play.environment).__name__}")

    def _continue(self, play: _Play, future: Future[Observation]) -> bool:
        """Append what the environment said; whether the model is to go on."""
        try:
            found = future.result()
        except Exception as error:
            self._failed(play, error)
            return False
        if found.reward is not None:
            play.rewards[-1] = found.reward
            play.scored = True
        answers = _as_messages(found.messages)
        if found.done:
            play.messages += answers
            play.end = "done"
        elif play.turn >= self.settings.max_turns:
            play.messages += answers
            play.end = "turns"
            self._last_word(play)
        elif self.settings.episode_seconds and time.monotonic() - play.began > self.settings.episode_seconds:
            play.end = "seconds"
        else:
            self._append(play, answers, found.messages)
        return not play.end

    def _last_word(self, play: _Play) -> None:
        """Let the environment score an episode that ends because it has no turns left."""
        score = getattr(play.environment, "reward", None)
        if not play.scored and score is not None and (value := score(play.messages[-1])) is not None:
            play.rewards[-1], play.scored = float(value), True

    def _append(self, play: _Play, answers: list[Message], raw: Any) -> None:
        last = play.ids[-1] if play.ids else play.prompt
        anew: Tensor | None = None
        if play.chat:
            said, shown = play.turns.plain(play.messages[-1], answers, last)
            self._say_rewritten(play, said, shown)
            between = play.turns.between(play.history, said, shown, last)
            play.history += [said, *shown]
            if self.settings.rewritten_history == "split":
                anew = play.turns.anew(play.history, torch.cat([play.context, between]))
        else:
            between = play.turns.text(raw if isinstance(raw, str) else "".join(str(one["content"]) for one in answers))
        play.messages += answers
        length = len(play.context) + len(between) if anew is None else len(anew)
        limits = [self.positions, self.settings.episode_tokens and self.settings.episode_tokens + len(play.prompt)]
        if length >= min([one for one in limits if one is not None], default=1 << 62):
            play.end = "tokens"
        elif anew is None:
            play.add(between, None, None, play.turn)
        else:
            play.breaks.append(play.length)
            play.add(anew, None, None, play.turn)

    def _say_rewritten(self, play: _Play, said: Message, shown: list[Message]) -> None:
        """Once: that the template shows what was sampled in another way afterwards."""
        if self._told or not said.get("reasoning_content") or not play.turns.rewrites(play.history, said, shown):
            return
        if self.settings.rewritten_history == "refuse":
            raise SettingsError(
                "The chat template leaves out of earlier turns what the model wrote there (thinking), so a later turn "
                "would be sampled behind other tokens than those that are trained. Choose another --chat-template, or "
                "--rewritten-history keep or split."
            )
        self._told = True
        what = {
            "keep": "keep the tokens that were sampled. Refuse with: --rewritten-history refuse, or train each turn "
            "behind what the template shows with: --rewritten-history split",
            "split": "are split, so that each turn is trained behind what the template shows.",
        }[self.settings.rewritten_history]
        self.say(f"The chat template shows earlier turns without the thinking in them; episodes {what}")

    def _failed(self, play: _Play, error: Exception) -> None:
        """What an environment that raised or took too long means for its episode."""
        if isinstance(error, DataError | SettingsError):
            raise error
        if self.settings.environment_errors == "stop":
            detail = " ".join(str(error).split())[:300]
            raise RunFailed(
                f"The environment {type(play.environment).__name__} failed at turn {play.turn} of the prompt "
                f"{str(play.row.get('prompt'))[:80]!r}: {type(error).__name__}: {detail}. To go on without such "
                "episodes: --environment-errors drop"
            ) from error
        play.end = "error"
        if self.settings.environment_errors == "drop":
            play.logps = [torch.full_like(part, torch.nan) for part in play.logps]


def _not_begun(play: _Play, error: Exception) -> RunFailed:
    return RunFailed(
        f"An environment does not begin the prompt {str(play.row.get('prompt'))[:80]!r}: "
        f"{type(error).__name__}: {' '.join(str(error).split())[:300]}. Try it alone: posttrain check-environment"
    )


def _as_messages(said: Any) -> list[Message]:
    if isinstance(said, str):
        return [{"role": "user", "content": said}] if said else []
    return list(said)
