"""Errors for a reward or judge that failed: its name, the line of its code, and the row at which it failed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.errors import PosttrainError, RunFailed, short
from posttrain.rewards.guard import Broken, Ended, TimedOut, guarded
from posttrain.settings.secret_options import redacted

#: Time limit of the search for the row that breaks a reward, in seconds.
SEARCH = 5.0


@dataclass
class Batch:
    """Content of a failed call: ``alone(row)`` repeats it for one row of ``texts``, which are called ``unit``."""

    unit: str
    texts: Sequence[str]
    prompts: Sequence[Any]
    alone: Callable[[int], Any]

    def name(self, row: int | None) -> str:
        """Describe the batch, and the row if it is known, in words."""
        whole = f"a batch of {len(self.texts)} {self.unit}s"
        if row is None:
            return f"on {whole}"
        return f"on {self.unit} {row} ({short(self.texts[row])}, prompt {short(self.prompts[row])}) of {whole}"


def failure(what: str, found: Broken, batch: Batch, limit: float | None) -> BaseException:
    """Return the error to raise where ``what`` failed: its own if it already says what to do."""
    error = found.error
    if isinstance(error, PosttrainError):
        return error
    place = f" at {found.frames[-1][0].f_code.co_filename}:{found.frames[-1][1]}" if found.frames else ""
    if isinstance(error, TimedOut):
        return RunFailed(
            f"{what} has not returned after {limit:g} seconds, then{place} {batch.name(_held(found, batch))}. "
            "Give it more time with --reward-timeout SECONDS; 0 sets no limit."
        )
    where = batch.name(_row(found, batch))
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


def _held(found: Broken, batch: Batch) -> int | None:
    """Return the row whose text the innermost frame with one holds: the current one, in the usual loop over rows."""
    places = {id(text): row for row, text in enumerate(batch.texts)}
    for frame, _ in reversed(found.frames):
        held = {places[id(value)] for value in frame.f_locals.values() if id(value) in places}
        if len(held) == 1:
            return held.pop()
    return None


def _row(found: Broken, batch: Batch) -> int | None:
    """Return the first row that alone fails in the same way; the one that the frame held is tried first."""
    if len(batch.texts) == 1:
        return 0
    held = _held(found, batch)
    rows = sorted(range(len(batch.texts)), key=lambda row: row != held)
    end = time.monotonic() + SEARCH
    for row in rows:
        left = end - time.monotonic()
        if left <= 0:
            return None
        try:
            guarded(lambda row=row: batch.alone(row), "A reward", left)  # type: ignore[misc]
        except Broken as again:
            if type(again.error) is type(found.error):
                return row
    return None
