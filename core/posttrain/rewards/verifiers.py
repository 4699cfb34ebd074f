"""Rewards that check a final answer: ``gsm8k`` for plain numbers, ``math`` for anything math-verify can compare."""

from __future__ import annotations

import re
import threading
from decimal import Decimal
from typing import Any

from posttrain.errors import DependencyError, RewardError

#: A minus sign that is not between two terms, an optional currency sign, digits with or without thousands separators.
_NUMBER = re.compile(r"(?:(?<![\w.)\]}])(-)\s?)?[$€£]?\s?((?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)")
_MARK = "####"


def gsm8k(completions: list[str], answer: list[Any]) -> list[float | None]:
    """Return 1 where the final number of the completion equals that of the column ``answer``, else 0.

    The final number is the first one after the last ``####``, or the last one where there is no ``####``. None where
    ``answer`` has no number.
    """
    scores: list[float | None] = []
    for completion, expected in zip(completions, answer, strict=True):
        wanted = None if expected is None else final_number(str(expected))
        scores.append(None if wanted is None else float(final_number(completion) == wanted))
    return scores


def final_number(text: str) -> Decimal | None:
    """Return the final number of a text, as GSM8K writes answers; None if there is none."""
    text = text.replace("{,}", ",").replace("\N{MINUS SIGN}", "-").replace("\\$", "$")
    _, mark, marked = text.rpartition(_MARK)
    numbers = list(_NUMBER.finditer(marked if mark else text))
    if not numbers:
        return None
    sign, digits = (numbers[0] if mark else numbers[-1]).groups()
    return Decimal(f"{sign or ''}{digits.replace(',', '')}")


def math(
    completions: list[str], answer: list[Any] | None = None, solution: list[Any] | None = None
) -> list[float | None]:
    """Return 1 where math-verify finds the completion's final expression equal to ``answer`` (or ``solution``), else 0.

    Expressions may be LaTeX or plain. None where the expected answer cannot be parsed.
    """
    expected = solution if answer is None else answer
    if expected is None:
        raise RewardError(
            "Reward 'math' needs a column 'answer' or 'solution'. Rename a column with --columns answer=COLUMN."
        )
    try:
        from math_verify import parse, verify
    except ImportError:
        raise DependencyError(
            "Reward 'math' needs the package math-verify. Install it with: pip install 'posttrain[math]'"
        ) from None
    # math-verify limits its time with a signal, which only the main thread can receive.
    seconds = 5 if threading.current_thread() is threading.main_thread() else None
    scores: list[float | None] = []
    for completion, gold in zip(completions, expected, strict=True):
        wanted = [] if gold is None else parse(_as_latex(str(gold)), parsing_timeout=seconds)
        if not wanted:
            scores.append(None)
            continue
        given = parse(completion, parsing_timeout=seconds)
        scores.append(float(bool(given) and verify(wanted, given, timeout_seconds=seconds)))
    return scores


def _as_latex(text: str) -> str:
    """Mark a bare expression as LaTeX, which math-verify otherwise finds between dollars only."""
    bare = "$" not in text and "\\boxed" not in text and "\\(" not in text and "\\[" not in text
    return f"${text}$" if bare and "\\" in text else text
