"""Running checks over a subject, and their results. Waivers of the card are strict: one that passes is a failure."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.catalogue.cards import Card
from posttrain.errors import PosttrainError

from posttrain_testkit.registry import GROUPS, Check, CheckFailed, all_checks
from posttrain_testkit.subject import Subject, subject_of

if TYPE_CHECKING:
    from posttrain.catalogue.methods import Method

#: Outcomes that make a method fail.
FAILURES = ("failed", "stale-waiver")


@dataclass(frozen=True)
class Result:
    """The outcome of one check of one method: passed, failed, waived or stale-waiver."""

    method: str
    check: str
    group: str
    outcome: str
    seconds: float
    what: str = ""
    cause: str = ""
    repeat: str = ""

    @property
    def failed(self) -> bool:
        """Whether this makes the method fail."""
        return self.outcome in FAILURES

    def text(self) -> str:
        """Format a success in one line, a failure in four: what happened, the usual cause, how to repeat it."""
        if self.outcome == "passed":
            return f"{self.method}: {self.check} passed"
        if self.outcome == "waived":
            return f"{self.method}: {self.check} waived. {self.cause}"
        return f"{self.method}: {self.check}\n  {self.what}\n  {self.cause}\n  Repeat with: {self.repeat}"


def checks_for(method: str | Path | Method | Subject, groups: Iterable[str] = tuple(GROUPS)) -> list[Check]:
    """Return the checks that apply to a method, in order. A card that cannot be read leaves the static ones alone.

    ``method`` is a name, a plugin's folder, a loaded method or a subject. Raises MethodError where it is none of these.
    """
    subject = subject_of(method)
    checks = all_checks(groups)
    card = _card_or_none(subject)
    return [one for one in checks if (one.group == "static" if card is None else one.applies(card))]


def run_check(check: Check, subject: Subject) -> Result:
    """Run one check and judge its outcome against the card's waivers."""
    card = _card_or_none(subject)
    waiver = card.waivers.get(check.name) if card else None
    begun = time.perf_counter()
    try:
        with nullcontext() if check.group == "static" else _one_thread():
            check.function(subject)
        failure = None
    except CheckFailed as error:
        failure = error
    except PosttrainError as error:  # the method does not load, or broke the contract before the property was checked
        failure = CheckFailed(str(error), "Usual cause: the method breaks the contract before this can be checked.")
    except (Exception, SystemExit) as error:  # any other error is the method's: it is reported, with its place
        failure = CheckFailed(f"Raised {_place(error)}.", "Usual cause: a case that the method does not think of.")
    if failure is not None and waiver is None:
        waiver = _unshown(check, subject)
    return _judge(check, subject, failure, waiver, time.perf_counter() - begun)


def _unshown(check: Check, subject: Subject) -> str | None:
    """Return why a family other than text may not show what a method promises; None where it has to."""
    if subject.family == "text":
        return None
    from posttrain_testkit.families import FAMILIES, PROMISES

    return FAMILIES[subject.family].unshown.get(subject.name) if check.name in PROMISES else None


def run_checks(subject: Subject, checks: Iterable[Check]) -> Iterator[Result]:
    """Run checks one after the other and yield each result at once."""
    for check in checks:
        yield run_check(check, subject)


def as_json(results: list[Result]) -> dict[str, Any]:
    """Return the results as plain data: counts by outcome, then each result."""
    outcomes = ("passed", "waived", *FAILURES)
    counts = {outcome: sum(one.outcome == outcome for one in results) for outcome in outcomes}
    return {
        "passed": not any(one.failed for one in results),
        "counts": counts,
        "results": [asdict(one) for one in results],
    }


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limit torch to one thread: tensors this small are slowed down by threads, tenfold on a busy machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _judge(check: Check, subject: Subject, failure: CheckFailed | None, waiver: str | None, seconds: float) -> Result:
    what = cause = repeat = ""
    if waiver is not None and failure is not None:
        outcome, what, cause = "waived", failure.what, waiver
    elif waiver is not None:
        outcome = "stale-waiver"
        what = f"The card waives this check ({waiver}) but it passes."
        cause = f"Remove '{check.name}' from [waivers] in method.toml."
    elif failure is not None:
        outcome, what, cause = "failed", failure.what, failure.cause
    else:
        outcome = "passed"
    if outcome in FAILURES:
        family = "" if subject.family == "text" else f" --family {subject.family}"
        repeat = f"posttrain check {subject.source or subject.name} --only {check.name}{family}"
    return Result(subject.name, check.name, check.group, outcome, round(seconds, 4), what, cause, repeat)


def _card_or_none(subject: Subject) -> Card | None:
    try:
        return subject.card
    except PosttrainError:  # check_card_is_valid reports it
        return None


def _place(error: BaseException) -> str:
    """Return the exception and the innermost line of code, on one line."""
    text = " ".join(str(error).split()) or "no message"
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {text}{where}"
