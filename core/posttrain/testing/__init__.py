"""The conformance kit: what every method must be, as checks that anyone can run over theirs.

``posttrain check NAME`` runs it from the command line; in a test file of one's own::

    from posttrain.testing import parametrize_checks

    @parametrize_checks("my-loss")
    def test_conformance(check):
        check()
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.testing.registry import GROUPS, Check, CheckFailed
from posttrain.testing.report import Result, checks_for, run_check
from posttrain.testing.subject import Subject, subject_of

if TYPE_CHECKING:
    from posttrain.methods import Method

__all__ = ["Check", "CheckFailed", "Result", "Subject", "checks_for", "parametrize_checks", "run_check", "subject_of"]


def parametrize_checks(*methods: str | Path | Method, groups: tuple[str, ...] = tuple(GROUPS)) -> Any:
    """Decorator for a test with the argument ``check``: one case for each check of each method.

    The ids are readable (``dpo-check_loss_is_finite``), so ``pytest -k dpo`` and ``pytest -k loss_is_finite`` both
    work. ``check()`` raises AssertionError with the whole failure, and skips where the card waives the check.
    """
    import pytest

    subjects = [subject_of(method) for method in methods]
    cases = [
        pytest.param(_Case(one, subject), id=f"{subject.name}-{one.name}")
        for subject in subjects
        for one in checks_for(subject, groups)
    ]
    return pytest.mark.parametrize("check", cases)


class _Case:
    """One check of one method, ready to be called in a test."""

    def __init__(self, check: Check, subject: Subject):
        self.check = check
        self.subject = subject

    def __call__(self) -> None:
        import pytest

        result = run_check(self.check, self.subject)
        if result.outcome == "waived":
            pytest.skip(f"waived: {result.cause}")
        if result.failed:
            raise AssertionError(result.text())
