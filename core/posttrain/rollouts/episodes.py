"""Completions of several turns: model and environment alternate until the episode ends.

A slow environment delays no other episode: those with an answer go on sampling. A turn's tokens depend on the run's
seed, the prompt, the sample and the turn alone, never on the speed of environments; the rounding of their log-probs
does, since speed decides which turns are sampled together.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

import torch

from posttrain.contract.generation import Completion, Generator, Sampling
from posttrain.contract.views import Sequence
from posttrain.data.tokens.conversation import Conversation
from posttrain.data.tokens.turns import Message, Turns
from posttrain.environments.environment import Observation, begin, observation_of
from posttrain.errors import DataError, RunFailed, SettingsError
from posttrain.rollouts.play import Play
from posttrain.rollouts.seeds import seed_of
from posttrain.rollouts.turn_samplers import Asked, turn_sampler
from posttrain.servers.daemon_pool import DaemonPool
from posttrain.settings import EpisodeSettings


class _Events:
    """Events of other threads: an episode started, an environment answered, a turn was sampled."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[tuple[str, Play, Future[Any]]] = SimpleQueue()
        self.open: dict[Future[Any], tuple[str, Play]] = {}
        """Running calls of environments, without those that were given up."""

    def watch(self, what: str, play: Play, future: Future[Any]) -> None:
        """Report ``future`` once it is done."""
        self.open[future] = what, play
        future.add_done_callback(lambda done: self._queue.put((what, play, done)))

    def sampled(self, future: Future[Completion], play: Play) -> None:
        """Report a sampled turn; called in the thread that sampled it."""
        self._queue.put(("sample", play, future))

    def since(self, seconds: float) -> list[tuple[str, Play, Future[Any]]]:
        """Return the events since the last call; wait at most ``seconds`` for the first."""
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
    """Plays episodes with a generator. ``make`` returns a new environment for each."""

    make: Callable[[], Any]
    turns: Turns
    settings: EpisodeSettings
    positions: int | None
    """Context length of the model in tokens, prompt included; None for no limit."""
    say: Callable[[str], None] = print
    apart: bool = False
    """Whether each turn is a text of its own, behind all that came before: of a model that reads what is before its
    answer in both directions, so that the answers of earlier turns are read otherwise than they were sampled."""
    _told: bool = False
    _told_unmarked: bool = False

    def play(
        self, generator: Generator, prompts: list[Sequence], rows: list[dict[str, Any]], sampling: Sampling,
        seeds: list[list[int]],
    ) -> list[list[Completion]]:  # fmt: skip
        """Complete each prompt once per seed; completions in the order of the seeds. Raises RunFailed."""
        plays = [
            [self._new(prompt, row, seed) for seed in own]
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

    def _new(self, prompt: Sequence, row: dict[str, Any], seed: int) -> Play:
        talk = Conversation.of_row(row, self.turns.templates.settings, self.turns.reader)
        return Play(row, seed, prompt, self.turns.of_row(row), talk)

    def _play_all(self, generator: Generator, plays: list[Play], sampling: Sampling, pool: DaemonPool) -> None:
        """Start, sample and answer every episode that can go on; a finished episode makes room for a waiting one."""
        most = min(self.settings.episodes_at_once or len(plays), len(plays)) or 1
        waiting, events = deque(plays), _Events()
        running: set[Play] = set()
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
        """Seconds to wait for an event before environments are checked for their time limit."""
        return min(1.0, self.settings.tool_timeout or 1.0)

    def _give_up(self, events: _Events) -> None:
        """Stop waiting for environments that exceed their time limit."""
        limit = self.settings.tool_timeout
        for future, (what, play) in list(events.open.items()) if limit else []:
            if time.monotonic() - play.since > limit and not future.done():
                del events.open[future]
                error = TimeoutError(f"no answer in {limit:g} seconds")
                try:
                    if what == "begin":  # an episode without a sampled token does not count
                        raise _not_begun(play, error)
                    self._failed(play, error)
                finally:
                    play.environment = None  # it is still running, and closing it might wait as long

    def _begin(self, play: Play) -> Any:
        """Start the environment and return its first observation; runs in a thread of its own."""
        play.since = time.monotonic()
        play.environment = self.make()
        return begin(play.environment, play.row, play.seed)

    def _began(self, play: Play, future: Future[Any]) -> bool:
        """Append the environment's first observation to the prompt. Raises RunFailed where it does not start."""
        try:
            said: Any = future.result()
        except (DataError, SettingsError, RunFailed):
            raise
        except Exception as error:
            raise _not_begun(play, error) from error
        play.began = time.monotonic()
        if said:
            talk = play.talk
            _, opening = talk.joined(said)
            if talk.chat:
                talk.history += opening
                play.prompt = play.turns.opening(talk.history, talk.sources)
            else:
                play.open(play.turns.text(opening, talk.sources))
            self._say_unmarked(talk)
        return True

    def _asked(self, play: Play, sampling: Sampling) -> Asked:
        """Build the generator's request for the next turn."""
        seed = seed_of(play.seed, "turn", play.turn) if play.turn else play.seed
        return play, play.context, seed, self._room(play, sampling)

    def _room(self, play: Play, sampling: Sampling) -> int:
        """Return the token limit of the next turn."""
        left = [sampling.max_new_tokens]
        if self.positions is not None:
            left.append(self.positions - len(play.context))
        if self.settings.episode_tokens is not None:
            left.append(self.settings.episode_tokens - (len(play.context) - len(play.prompt)))
        return max(1, min(left))

    def _take(self, play: Play, turn: Completion) -> bool:
        """Append a sampled turn; return whether the environment answers it."""
        play.note(turn)
        play.add(turn.ids, turn.logps, turn.versions, play.turn)
        play.text = turn.text
        said: Message = {"role": "assistant", "content": turn.text}
        if play.talk.chat:
            said = play.turns.message(turn.ids)
            play.text = str(said.get("content") or "")
        play.messages.append(said)
        play.rewards.append(0.0)
        if not turn.finished:
            play.end = "tokens"
            return False
        return True

    def _answer(self, play: Play) -> Observation:
        """Return the environment's observation; runs in a thread of its own."""
        play.since = time.monotonic()
        step = play.environment.step
        return observation_of(step(play.messages[-1]), f"step of {type(play.environment).__name__}")

    def _continue(self, play: Play, future: Future[Observation]) -> bool:
        """Append the environment's observation; return whether the model continues."""
        try:
            found = future.result()
        except Exception as error:
            self._failed(play, error)
            return False
        if found.reward is not None:
            play.rewards[-1] = found.reward
            play.scored = True
        if found.done:
            play.messages += play.talk.joined(found.messages)[0]
            play.end = "done"
        elif play.turn >= self.settings.max_turns:
            play.messages += play.talk.joined(found.messages)[0]
            play.end = "turns"
            self._last_word(play)
        elif self.settings.episode_seconds and time.monotonic() - play.began > self.settings.episode_seconds:
            play.end = "seconds"
        else:
            self._append(play, *play.talk.joined(found.messages))
        return not play.end

    def _last_word(self, play: Play) -> None:
        """Let the environment score an episode that ends because no turns are left."""
        score = getattr(play.environment, "reward", None)
        if not play.scored and score is not None and (value := score(play.messages[-1])) is not None:
            play.rewards[-1], play.scored = float(value), True

    def _append(self, play: Play, kept: list[Message], answers: list[Message]) -> None:
        """Append the environment's messages: ``kept`` as it gave them, ``answers`` with numbers of their images."""
        last = play.ids[-1] if play.ids else play.prompt.ids
        talk = play.talk
        anew: Sequence | None = None
        if talk.chat:
            said, shown = play.turns.plain(play.messages[-1], answers, last)
            self._say_rewritten(play, said, shown)
            between = play.turns.between(talk.history, said, shown, last, talk.sources)
            talk.history += [said, *shown]
            if self.settings.rewritten_history == "split":
                anew = play.turns.anew(talk.history, torch.cat([play.context.ids, between.ids]), talk.sources)
        else:
            between = play.turns.text(answers, talk.sources)
        if anew is None and self.apart:
            anew = play.followed(between)
        self._say_unmarked(talk)
        play.messages += kept
        length = len(play.context) + len(between) if anew is None else len(anew)
        limits = [self.positions, self.settings.episode_tokens and self.settings.episode_tokens + len(play.prompt)]
        if length >= min([one for one in limits if one is not None], default=1 << 62):
            play.end = "tokens"
        elif anew is None:
            play.show(between, play.turn)
        else:
            play.breaks.append(play.length)
            play.show(anew, play.turn)

    def _say_unmarked(self, talk: Conversation) -> None:
        """Report once that the environment wrote a token of images as text."""
        if talk.unmarked and not self._told_unmarked:
            self._told_unmarked = True
            self.say("An environment writes the model's token for images as text, which is left out of its messages.")

    def _say_rewritten(self, play: Play, said: Message, shown: list[Message]) -> None:
        """Report once that the template shows earlier turns differently from what was sampled."""
        if self._told or not said.get("reasoning_content") or not play.turns.rewrites(play.talk.history, said, shown):
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

    def _failed(self, play: Play, error: Exception) -> None:
        """Handle an environment that raised or exceeded its time limit."""
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


def _not_begun(play: Play, error: Exception) -> RunFailed:
    return RunFailed(
        f"An environment does not begin the prompt {str(play.row.get('prompt'))[:80]!r}: "
        f"{type(error).__name__}: {' '.join(str(error).split())[:300]}. Try it alone: posttrain check-environment"
    )
