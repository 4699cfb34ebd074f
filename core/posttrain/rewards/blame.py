"""Errors for a reward or judge that failed: its name, the line of its code, and the rows at which it failed."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.errors import PosttrainError, RunFailed, short
from posttrain.rewards.guard import Broken, Ended, TimedOut, guarded
from posttrain.settings.secret_options import redacted

#: Time limit of the search for the rows that break a reward, in seconds.
SEARCH = 5.0


@dataclass
class Batch:
    """Content of a failed call: ``again(rows)`` repeats it for some rows of ``texts``, which are called ``unit``."""

    unit: str
    texts: Sequence[str]
    prompts: Sequence[Any]
    again: Callable[[range], Any]

    def name(self, rows: range) -> str:
        """Describe the batch, and neighbouring rows of it, in words."""
        whole = f"a batch of {len(self.texts)} {self.unit}s"
        ends = [f"{row} ({short(self.texts[row])}, prompt {short(self.prompts[row])})" for row in (rows[0], rows[-1])]
        if len(rows) == 1:
            return f"on {self.unit} {ends[0]} of {whole}"
        return f"on {self.unit}s {ends[0]} to {ends[1]} of {whole}"


def failure(what: str, found: Broken, batch: Batch, limit: float | None) -> BaseException:
    """Return the error to raise where ``what`` failed: its own if it already says what to do."""
    error = found.error
    if isinstance(error, PosttrainError):
        return error
    place = f" at {found.frames[-1][0].f_code.co_filename}:{found.frames[-1][1]}" if found.frames else ""
    if isinstance(error, TimedOut):
        rows = _held(found, batch) or range(len(batch.texts))
        return RunFailed(
            f"{what} has not returned after {limit:g} seconds, then{place} {batch.name(rows)}. "
            "Give it more time with --reward-timeout SECONDS; 0 sets no limit."
        )
    where = batch.name(_rows(found, batch))
    if isinstance(error, Ended):
        return RunFailed(f"{what} {error}{place} {where}. A reward returns; it does not end the run.")
    text = " ".join(_text(error).split()) or "no message"
    return RunFailed(
        f"{what} raised {type(error).__name__}{place} {where}: {text[:300]}. "
        f"A {what.split()[0].lower()} returns None for a {batch.unit} that it cannot judge."
    )


def reason(error: BaseException) -> str:
    """Return the raised error in one short line."""
    if isinstance(error, TimedOut):
        return "it takes too long"
    if isinstance(error, Ended):
        return f"it {error}"
    return f"{type(error).__name__}: {_text(error)[:300]}"


def _text(error: BaseException) -> str:
    try:
        return redacted(str(error))
    except Exception:  # of a foreign class
        return ""


def _held(found: Broken, batch: Batch) -> range | None:
    """Return the row whose text the innermost frame with one holds: the current one, in the usual loop over rows."""
    places = {id(text): row for row, text in enumerate(batch.texts)}
    for frame, _ in reversed(found.frames):
        held = {places[id(value)] for value in frame.f_locals.values() if id(value) in places}
        if len(held) == 1:
            return _one(held.pop())
    return None


def _one(row: int) -> range:
    return range(row, row + 1)


def _rows(found: Broken, batch: Batch) -> range:
    """Return the rows that fail in the same way; the one that the frame held is tried first."""

    def fails(rows: range, seconds: float) -> bool:
        try:
            guarded(lambda: batch.again(rows), "A reward", seconds)
        except Broken as again:
            return type(again.error) is type(found.error)
        return False

    return find_rows(fails, len(batch.texts), _held(found, batch))


def find_rows(fails: Callable[[range, float], bool], count: int, held: range | None = None) -> range:
    """Return the first of ``count`` rows that fails alone, else the fewest neighbours that fail together, else all.

    ``fails(rows, seconds)`` tries some again for so long; ``held`` is tried first.
    """
    everyone, end = range(count), time.monotonic() + SEARCH
    if count <= 1:
        return everyone
    for row in sorted(everyone, key=lambda row: _one(row) != held):
        left = end - time.monotonic()
        if left <= 0:
            return everyone
        if fails(_one(row), left):
            return _one(row)
    return _fewest(lambda rows: end > time.monotonic() and fails(rows, end - time.monotonic()), everyone)


def _fewest(fails: Callable[[range], bool], rows: range) -> range:
    """Leave out of ``rows``, which fail together, the last and then the first ones that the failure does not need."""
    last = bisect_left(range(1, len(rows)), True, key=lambda count: fails(rows[:count]))
    needed = rows[: last + 1]
    return needed[bisect_left(range(1, len(needed)), True, key=lambda start: not fails(needed[start:])) :]
