"""Who samples the turns of episodes: each as soon as it is asked for, where the generator lets turns join."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

from torch import Tensor

from posttrain.contract.generation import Completion, Generator, Sampling

#: What a turn is for, the tokens ``(n,)`` before it, its seed, and how many tokens it may have.
Asked = tuple[Any, Tensor, int, int]


class TurnSampler(Protocol):
    """Samples turns."""

    @property
    def busy(self) -> bool:
        """Whether ``advance`` has something to do."""
        ...

    def ask(self, asked: list[Asked]) -> None:
        """Ask for turns."""
        ...

    def advance(self) -> list[tuple[Any, Completion]]:
        """Go on for a while; the turns that have ended, with what they are for."""
        ...


@contextmanager
def turn_sampler(
    generator: Generator, sampling: Sampling, most: int, done: Callable[..., None]
) -> Iterator[TurnSampler]:
    """The best way that ``generator`` has to sample turns.

    In its thread others join between two tokens ("sessions"); or ``most`` threads ask, each for one turn ("ahead"), and
    ``done(future, play=what)`` is called in them; else those that have been asked for are sampled together.
    """
    sampling = replace(sampling, continued=True)
    if generator.abilities.sessions:
        with generator.session(sampling) as session:  # type: ignore[attr-defined]  # the ability says so
            yield session
    elif generator.abilities.ahead:
        threads = ThreadPoolExecutor(most, "turns")
        try:
            yield _Apart(generator, sampling, threads, done)
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
    else:
        yield _Together(generator, sampling)


def _generate(generator: Generator, asked: list[Asked], sampling: Sampling) -> list[Completion]:
    """Turns of one limit. Those behind the same tokens are asked for as samples of one prompt."""
    places: dict[bytes, list[int]] = {}
    for place, (_, text, _, _) in enumerate(asked):
        places.setdefault(text.numpy().tobytes(), []).append(place)
    groups = list(places.values())
    found = generator.generate(
        [asked[own[0]][1] for own in groups],
        replace(sampling, max_new_tokens=asked[0][3]),
        [[asked[place][2] for place in own] for own in groups],
    )
    by_place = {
        place: one
        for own, completions in zip(groups, found, strict=True)
        for place, one in zip(own, completions, strict=True)
    }
    return [by_place[place] for place in range(len(asked))]


class _Apart:
    """A generator that takes calls of several threads: each turn is a call of its own."""

    busy = False

    def __init__(
        self,
        generator: Generator,
        sampling: Sampling,
        threads: ThreadPoolExecutor,
        done: Callable[..., None],
    ):
        self._generator, self._sampling, self._threads, self._done = generator, sampling, threads, done

    def ask(self, asked: list[Asked]) -> None:
        """Ask for turns."""
        for one in asked:
            self._threads.submit(self._one, one).add_done_callback(functools.partial(self._done, play=one[0]))

    def _one(self, asked: Asked) -> Completion:
        return _generate(self._generator, [asked], self._sampling)[0]

    def advance(self) -> list[tuple[Any, Completion]]:
        """Nothing: ``done`` is told."""
        return []


class _Together:
    """A generator that answers one call at a time."""

    def __init__(self, generator: Generator, sampling: Sampling):
        self._generator, self._sampling = generator, sampling
        self._asked: list[Asked] = []

    @property
    def busy(self) -> bool:
        """Whether anything was asked for."""
        return bool(self._asked)

    def ask(self, asked: list[Asked]) -> None:
        """Ask for turns."""
        self._asked += asked

    def advance(self) -> list[tuple[Any, Completion]]:
        """Sample all that was asked for, those with the most room first."""
        asked, self._asked = self._asked, []
        found: list[tuple[Any, Completion]] = []
        for limit in sorted({one[3] for one in asked}, reverse=True):
            own = [one for one in asked if one[3] == limit]
            found += zip([one[0] for one in own], _generate(self._generator, own, self._sampling), strict=True)
        return found
