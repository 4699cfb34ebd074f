"""Answers of several turns: the model writes, the environment answers, until the episode ends.

An episode whose environment is slow holds up no other: those that have been answered go on sampling. A turn's tokens
depend on the run's seed, the prompt, the sample and the turn alone, never on which environment was faster; the rounding
of their log-probs does, since that decides which turns are sampled together.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from posttrain.contract.generation import Completion, Episode, Generator, Sampling
from posttrain.contract.messages import is_messages
from posttrain.data.tokens.turns import Message, Turns
from posttrain.environments.environment import Observation, begin, close, observation_of
from posttrain.errors import DataError, RunFailed, SettingsError
from posttrain.rollouts.seeds import seed_of
from posttrain.settings.episodes import EpisodeSettings


@dataclass(eq=False)
class _Play:
    """One episode while it is played."""

    environment: Any
    row: dict[str, Any]
    seed: int
    chat: bool
    prompt: Tensor  # (p,)
    history: list[Message]
    """The conversation as the template is shown it."""
    messages: list[Message] = field(default_factory=list)
    ids: list[Tensor] = field(default_factory=list)
    logps: list[Tensor] = field(default_factory=list)
    sampled: list[Tensor] = field(default_factory=list)
    turns: list[Tensor] = field(default_factory=list)
    versions: list[Tensor] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
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

    def add(self, ids: Tensor, logps: Tensor | None, version: Tensor | None, turn: int) -> None:
        """Append tokens ``(n,)``: sampled ones with log-probs, or the environment's with None."""
        if not len(ids):
            return
        self.ids.append(ids)
        self.logps.append(torch.zeros(len(ids)) if logps is None else logps)
        self.sampled.append(torch.full((len(ids),), logps is not None))
        self.turns.append(torch.full((len(ids),), turn, dtype=torch.long))
        if version is not None:
            self.versions.append(version)
        elif self.versions:  # made by nobody: as old as what it follows
            self.versions.append(self.versions[-1][-1:].expand(len(ids)))

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
                torch.cat(self.turns),
                self.rewards,
                self.messages,
                self.end,
                self.scored,
            ),
        )


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
            [self._begin(prompt, row, seed) for seed in own]
            for prompt, row, own in zip(prompts, rows, seeds, strict=True)
        ]
        flat = [play for own in plays for play in own]
        pool = ThreadPoolExecutor(self.settings.tool_workers, "environments")
        samplers = ThreadPoolExecutor(len(flat) or 1, "turns") if generator.abilities.ahead else None
        try:
            self._play_all(generator, flat, sampling, pool, samplers)
        finally:
            for used in filter(None, (pool, samplers)):
                used.shutdown(wait=False, cancel_futures=True)
            for play in flat:
                close(play.environment)
        return [[play.completion() for play in own] for own in plays]

    def _play_all(
        self,
        generator: Generator,
        plays: list[_Play],
        sampling: Sampling,
        pool: ThreadPoolExecutor,
        samplers: ThreadPoolExecutor | None,
    ) -> None:
        """Sample for the episodes that have been answered, while the others' environments work.

        With ``samplers`` the generator takes calls of several threads, and each episode asks it by itself; without, the
        episodes that are ready are asked for together.
        """
        tasks: dict[Future[Any], tuple[_Play, bool]] = {}  # with whether it is the model's turn

        def sampled(play: _Play, turn: Completion) -> None:
            if self._take(play, turn):
                play.since = math.inf
                tasks[pool.submit(self._answer, play)] = play, False

        def sample(ready: list[_Play]) -> None:
            if samplers is not None:
                tasks.update(
                    {samplers.submit(self._sample, generator, [play], sampling): (play, True) for play in ready}
                )
            elif ready:
                for play, turn in zip(ready, self._sample(generator, ready, sampling), strict=True):
                    sampled(play, turn)

        sample(plays)
        while tasks:
            done, _ = wait(tasks, min(1.0, self.settings.tool_timeout or 1.0), FIRST_COMPLETED)
            ready = []
            for task in done:
                play, of_model = tasks.pop(task)
                if of_model:
                    sampled(play, task.result()[0])
                elif self._continue(play, task):
                    ready.append(play)
            for task in [one for one, (play, of_model) in tasks.items() if not of_model and self._overdue(play)]:
                self._failed(tasks.pop(task)[0], TimeoutError(f"no answer in {self.settings.tool_timeout:g} seconds"))
            sample(ready)

    def _begin(self, prompt: Tensor, row: dict[str, Any], seed: int) -> _Play:
        environment = self.make()
        chat = is_messages(row.get("prompt"))
        play = _Play(environment, row, seed, chat, prompt, list(row["prompt"]) if chat else [])
        said: Any = begin(environment, row, seed)
        if said:
            opening = _as_messages(said) if chat else []
            play.history += opening
            play.prompt = self.turns.opening(play.history) if chat else torch.cat([prompt, self.turns.text(said)])
        return play

    def _sample(self, generator: Generator, plays: list[_Play], sampling: Sampling) -> list[Completion]:
        """The next turn of each episode. Those that have read the same tokens are asked for together."""
        places: dict[tuple[int, bytes], list[int]] = {}
        contexts = [torch.cat([play.prompt, *play.ids]) for play in plays]
        for place, (play, context) in enumerate(zip(plays, contexts, strict=True)):
            places.setdefault((self._room(play, sampling), context.numpy().tobytes()), []).append(place)
        found: list[Any] = [None] * len(plays)
        for room in sorted({room for room, _ in places}, reverse=True):
            groups = [own for (size, _), own in places.items() if size == room]
            made = generator.generate(
                [contexts[own[0]] for own in groups],
                replace(sampling, max_new_tokens=room),
                [
                    [seed_of(plays[i].seed, "turn", plays[i].turn) if plays[i].turn else plays[i].seed for i in own]
                    for own in groups
                ],
            )
            for own, completions in zip(groups, made, strict=True):
                for place, completion in zip(own, completions, strict=True):
                    found[place] = completion
        return found

    def _room(self, play: _Play, sampling: Sampling) -> int:
        """Tokens that the next turn may have."""
        left = [sampling.max_new_tokens]
        if self.positions is not None:
            left.append(self.positions - len(play.prompt) - play.length)
        if self.settings.episode_tokens is not None:
            left.append(self.settings.episode_tokens - play.length)
        return max(1, min(left))

    def _take(self, play: _Play, turn: Completion) -> bool:
        """Append what was sampled; whether the environment is to answer it."""
        play.add(turn.ids, turn.logps, turn.versions, play.turn)
        play.text = turn.text
        said: Message = {"role": "assistant", "content": turn.text}
        if play.chat:
            said = self.turns.message(turn.ids)
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
        if play.chat:
            said, shown = self.turns.plain(play.messages[-1], answers, last)
            self._say_rewritten(play, said, shown)
            between = self.turns.between(play.history, said, shown, last)
            play.history += [said, *shown]
        else:
            between = self.turns.text(raw if isinstance(raw, str) else "".join(str(one["content"]) for one in answers))
        play.messages += answers
        limits = [self.positions and self.positions - len(play.prompt), self.settings.episode_tokens]
        if play.length + len(between) >= min([one for one in limits if one is not None], default=1 << 62):
            play.end = "tokens"
        else:
            play.add(between, None, None, play.turn)

    def _say_rewritten(self, play: _Play, said: Message, shown: list[Message]) -> None:
        """Once: that the template shows what was sampled in another way afterwards."""
        if self._told or not said.get("reasoning_content") or not self.turns.rewrites(play.history, said, shown):
            return
        if self.settings.rewritten_history == "refuse":
            raise SettingsError(
                "The chat template leaves out of earlier turns what the model wrote there (thinking), so a later turn "
                "would be sampled behind other tokens than those that are trained. Choose another --chat-template, or "
                "--rewritten-history keep."
            )
        self._told = True
        self.say(
            "The chat template shows earlier turns without the thinking in them; episodes keep the tokens that were "
            "sampled. Refuse with: --rewritten-history refuse"
        )

    def _overdue(self, play: _Play) -> bool:
        return bool(self.settings.tool_timeout) and time.monotonic() - play.since > self.settings.tool_timeout

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


def _as_messages(said: Any) -> list[Message]:
    if isinstance(said, str):
        return [{"role": "user", "content": said}] if said else []
    return list(said)
