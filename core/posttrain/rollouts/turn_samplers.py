"""Samplers of an episode's turns: each turn as soon as it is requested, where the generator lets turns join."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

from posttrain.contract.generation import Completion, Generator, Sampling
from posttrain.contract.views import Sequence

#: Owner of a turn, the text before it with its images, its seed, and its token limit.
Asked = tuple[Any, Sequence, int, int]


class TurnSampler(Protocol):
    """Samples turns."""

    @property
    def busy(self) -> bool:
        """Whether ``advance`` has something to do."""
        ...

    def ask(self, asked: list[Asked]) -> None:
        """Request turns."""
        ...

    def advance(self) -> list[tuple[Any, Completion]]:
        """Sample for a while; return the finished turns with their owners."""
        ...


@contextmanager
def turn_sampler(
    generator: Generator, sampling: Sampling, most: int, done: Callable[..., None]
) -> Iterator[TurnSampler]:
    """Yield the fastest sampler of turns that ``generator`` allows.

    "sessions": turns join a running batch between two tokens, in this thread. "ahead": ``most`` threads each request
    one turn and call ``done(future, play=what)``. Otherwise all requested turns are sampled together.
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
    """Sample turns with the same token limit. Turns after the same text are samples of one prompt."""
    places: dict[bytes, list[int]] = {}
    for place, (_, text, _, _) in enumerate(asked):
        places.setdefault(text.content.numpy().tobytes(), []).append(place)
    groups = list(places.values())
    texts = [asked[own[0]][1] for own in groups]
    images = [list(text.images) for text in texts]
    found = generator.generate(
        [text.ids for text in texts],
        replace(sampling, max_new_tokens=asked[0][3]),
        [[asked[place][2] for place in own] for own in groups],
        *([images] if any(images) else []),
    )
    by_place = {
        place: one
        for own, completions in zip(groups, found, strict=True)
        for place, one in zip(own, completions, strict=True)
    }
    return [by_place[place] for place in range(len(asked))]


class _Apart:
    """Sampler for a generator that takes calls of several threads: each turn is a separate call."""

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
        """Request turns."""
        for one in asked:
            self._threads.submit(self._one, one).add_done_callback(functools.partial(self._done, play=one[0]))

    def _one(self, asked: Asked) -> Completion:
        return _generate(self._generator, [asked], self._sampling)[0]

    def advance(self) -> list[tuple[Any, Completion]]:
        """Return nothing: ``done`` gets the turns."""
        return []


class _Together:
    """Sampler for a generator that answers one call at a time."""

    def __init__(self, generator: Generator, sampling: Sampling):
        self._generator, self._sampling = generator, sampling
        self._asked: list[Asked] = []

    @property
    def busy(self) -> bool:
        """Whether any turn is requested."""
        return bool(self._asked)

    def ask(self, asked: list[Asked]) -> None:
        """Request turns."""
        self._asked += asked

    def advance(self) -> list[tuple[Any, Completion]]:
        """Sample all requested turns, those with the highest limit first."""
        asked, self._asked = self._asked, []
        found: list[tuple[Any, Completion]] = []
        for limit in sorted({one[3] for one in asked}, reverse=True):
            own = [one for one in asked if one[3] == limit]
            found += zip([one[0] for one in own], _generate(self._generator, own, self._sampling), strict=True)
        return found
