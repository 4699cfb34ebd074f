"""The data called ``example``: the demonstration's task as rows of every schema. Deterministic, nothing is read."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from posttrain.example.task import problems

#: Training rows and held-out rows; the models called ``example`` are made with the problems behind both.
ROWS, HELD_OUT, PRACTICE = 512, 128, 4096
SEED = 0
Row = dict[str, Any]


@functools.cache
def parts() -> tuple[list[dict[str, str]], list[dict[str, str]], list[dict[str, str]]]:
    """Return problems for training, for evaluation, and for making the models, without overlap.

    All have at least two different digits, so that their answers can be sorted the wrong way round.
    """
    total = ROWS + HELD_OUT + PRACTICE
    found = [row for row in problems(total + 16, SEED) if len(set(row["answer"])) > 1][:total]
    return found[:ROWS], found[ROWS : ROWS + HELD_OUT], found[ROWS + HELD_OUT :]


def example_rows(schema: str, held_out: bool = False) -> list[Row]:
    """Return the rows of ``schema``, one of ``cards.SCHEMAS``: for training, or of other problems for evaluation."""
    train, evaluation, _ = parts()
    return make_rows(schema, evaluation if held_out else train)


def make_rows(schema: str, chosen: list[dict[str, str]]) -> list[Row]:
    """Return the rows of ``schema`` for these problems, each with its ``prompt`` and ``answer``."""
    make = _MAKERS[schema]
    return [make(place, **row) for place, row in enumerate(chosen)]


def slip(answer: str, place: int) -> tuple[str, int]:
    """Swap two neighbouring digits of ``answer``, chosen by ``place``; return it and the index of the first."""
    unlike = [at for at in range(len(answer) - 1) if answer[at] != answer[at + 1]]
    at = unlike[place % len(unlike)]
    return answer[:at] + answer[at + 1] + answer[at] + answer[at + 2 :], at


def in_place(text: str, answer: str) -> float:
    """Return the share of the digits of ``text`` that agree with ``answer`` in their positions."""
    return sum(one == other for one, other in zip(text, answer, strict=True)) / len(answer)


def _language_modeling(place: int, prompt: str, answer: str) -> Row:
    return {"text": prompt + answer}


def _prompt_completion(place: int, prompt: str, answer: str) -> Row:
    return {"prompt": prompt, "completion": answer}


def _preference(place: int, prompt: str, answer: str) -> Row:
    return {
        "prompt": prompt,
        "chosen": answer,
        "rejected": answer[::-1],
        "chosen_score": 1.0,
        "rejected_score": in_place(answer[::-1], answer),
        "tie": False,
        "gold": answer,
    }


def _unpaired(place: int, prompt: str, answer: str) -> Row:
    good = place % 2 == 0
    return {"prompt": prompt, "completion": answer if good else answer[::-1], "label": good}


def _ranked(place: int, prompt: str, answer: str) -> Row:
    texts = [answer, slip(answer, place)[0], answer[::-1]]
    return {"prompt": prompt, "completions": texts, "scores": [in_place(text, answer) for text in texts]}


def _scored(place: int, prompt: str, answer: str) -> Row:
    texts = (answer, slip(answer, place)[0], answer[::-1])
    scores = [in_place(text, answer) for text in texts]
    return {
        "prompt": prompt,
        "completion": texts[place % 3],
        "score": scores[place % 3],
        "group_scores": scores,
    }


def _stepwise(place: int, prompt: str, answer: str) -> Row:
    """Make one digit a step; in every other row two are swapped, and steps from the first of them on are wrong."""
    text, right = (answer, len(answer)) if place % 2 == 0 else slip(answer, place // 2)
    return {"prompt": prompt, "completions": list(text), "labels": [at < right for at in range(len(text))]}


def _forget_retain(place: int, prompt: str, answer: str) -> Row:
    """Make a row that forgets descending and retains ascending order; the alternative is sorted by halves."""
    return {
        "forget": {"prompt": prompt, "completion": answer[::-1]},
        "alternative": {"prompt": prompt, "completion": slip(answer, place)[0]},
        "retain": {"prompt": prompt, "completion": answer},
    }


def _trajectory(place: int, prompt: str, answer: str) -> Row:
    """Make a conversation that is right at once, or at the second attempt; the score is the share of right attempts."""
    ask, right = {"role": "user", "content": prompt}, {"role": "assistant", "content": answer}
    if place % 2 == 0:
        return {"messages": [ask, right], "score": 1.0}
    return {"messages": [ask, {"role": "assistant", "content": answer[::-1]}, ask, right], "score": 0.5}


def _prompt(place: int, prompt: str, answer: str) -> Row:
    return {
        "prompt": prompt,
        "answer": answer,
        "completion": answer,
        "privileged_context": answer,
        "feedback": f"The digits in ascending order are {answer}.",
    }


_MAKERS: dict[str, Callable[..., Row]] = {
    "language-modeling": _language_modeling,
    "prompt-completion": _prompt_completion,
    "preference": _preference,
    "unpaired-preference": _unpaired,
    "ranked": _ranked,
    "scored": _scored,
    "stepwise": _stepwise,
    "forget-retain": _forget_retain,
    "trajectory": _trajectory,
    "prompt": _prompt,
}
