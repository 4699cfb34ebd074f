"""Which task a method is put to: its rows, its plain baseline, and what it is asked for afterwards.

All tasks are one: five digits are to be written in ascending order, by a model that writes half of its answers the
wrong way round. What differs is what the rows tell: right answers, pairs, judgements, rewards, a teacher.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from posttrain.catalogue.cards import Card
from posttrain.example.rows import SEED, in_place, make_rows, parts, slip
from posttrain.example.task import DIGITS

Row = dict[str, Any]
#: Problems that no run learns from: for the final figures, and for the choice of the learning rate.
HELD_OUT, TUNING = 256, 128
#: Problems of one seed's training rows: of other seeds others.
PROBLEMS = 640


@dataclass(frozen=True)
class Task:
    """What the methods of one part of the league have in common."""

    name: str
    title: str
    baseline: str
    """The plain method that the others are to beat; "" for the model as it was."""
    rule: str
    """How the baseline is trained where its rows are others, in words; empty where they are the same."""
    rows: Callable[[Card, list[dict[str, str]]], list[Row]]
    """The training rows for these problems."""
    score: str = "right"
    """What is measured: right (answers), pairs (order of two texts), or steps (order of a text's steps)."""


def problems(seed: int) -> list[dict[str, str]]:
    """The problems that runs of ``seed`` learn from."""
    start = HELD_OUT + TUNING + seed * PROBLEMS
    return _others()[start : start + PROBLEMS]


def held_out(tuning: bool) -> list[dict[str, str]]:
    """Problems to measure with: those for the choice of a learning rate, or those for the final figures."""
    return _others()[HELD_OUT : HELD_OUT + TUNING] if tuning else _others()[:HELD_OUT]


@functools.cache
def _others() -> list[dict[str, str]]:
    """Problems that the model was not made with, in an order of their own."""
    known = {row["prompt"] for part in parts() for row in part}
    texts = [f"{number:0{DIGITS}d}" for number in range(10**DIGITS)]
    found = [text for text in texts if len(set(text)) > 1 and f"{text}=" not in known]
    random.Random(SEED).shuffle(found)
    return [{"prompt": f"{text}=", "answer": "".join(sorted(text))} for text in found]


def pairs(chosen: list[dict[str, str]]) -> list[Row]:
    """Pairs for judges: the right answer beside one with two digits exchanged, or beside the wrong way round."""
    rows = make_rows("preference", chosen)
    for place, row in enumerate(rows):
        if place % 2:
            row["rejected"] = slip(row["chosen"], place // 2)[0]
            row["rejected_score"] = in_place(row["rejected"], row["chosen"])
    return rows


def steps(chosen: list[dict[str, str]]) -> list[Row]:
    """Answers digit by digit, each with two digits exchanged."""
    return [row for one in chosen for row in make_rows("stepwise", [one, one])[1:]]


def _of_schema(card: Card, chosen: list[dict[str, str]]) -> list[Row]:
    return make_rows(card.schemas[0], chosen)


def _best(card: Card, chosen: list[dict[str, str]]) -> list[Row]:
    """Scored answers; a method that knows no scores gets those with the highest one."""
    rows = make_rows("scored", chosen)
    return rows if "scored" in card.schemas else [row for row in rows if row["score"] == 1.0]


def _ends(card: Card, chosen: list[dict[str, str]]) -> list[Row]:
    """Ranked answers; a method that knows pairs gets the first and the last of each."""
    rows = make_rows("ranked", chosen)
    if "ranked" in card.schemas:
        return rows
    return [{"prompt": r["prompt"], "chosen": r["completions"][0], "rejected": r["completions"][-1]} for r in rows]


def _judging(card: Card, chosen: list[dict[str, str]]) -> list[Row]:
    return pairs(chosen) if card.schemas[0] == "preference" else _of_schema(card, chosen)


TASKS = {
    task.name: task
    for task in (
        Task("texts", "Right answers to imitate", "sft", "", _of_schema),
        Task("pairs", "Pairs: the right answer and the wrong way round", "dpo", "", _of_schema),
        Task("judged", "Single answers, marked right or wrong", "kto", "", _of_schema),
        Task("ranked", "Three answers, best first", "dpo", "on the first and the last answer of each row", _ends),
        Task("scored", "Single answers with a score", "sft", "on the rows with the highest score", _best),
        Task("rewards", "A reward for answers that the model writes", "grpo", "", _of_schema),
        Task("told", "Prompts, and the right answer beside them", "sft", "on prompts and right answers", _of_schema),
        Task("alone", "Prompts and nothing else", "", "the model as it was", _of_schema),
        Task("teacher-texts", "Right answers, and a teacher that reads them too", "kd", "", _of_schema),
        Task("teacher", "Prompts, and a teacher that reads the model's own answers", "gkd", "", _of_schema),
        Task("forgetting", "Answers to forget beside answers to keep", "grad-diff", "", _of_schema),
        Task("judges", "Reward models: to tell right from wrong", "reward", "", _judging, "pairs"),
        Task("steps", "Reward models for steps", "prm-step", "", _of_schema, "steps"),
    )
}
#: Schema of rows that reach a method by more than what its card says.
_TOLD = ("spin", "sdft", "opsd", "sdpo", "rlsd", "sdar")
_BY_SCHEMA = {
    "language-modeling": "texts",
    "prompt-completion": "texts",
    "preference": "pairs",
    "unpaired-preference": "judged",
    "ranked": "ranked",
    "scored": "scored",
    "forget-retain": "forgetting",
    "stepwise": "steps",
}
#: Methods that have to be asked in a way of their own: how the prompt is worded that wants the best answer.
ASKED = {
    "steerlm": "{prompt}\n[score:1]\n",
    "conditional-sft": "{prompt}<|good|>",
    "return-conditioned-sft": "[return 5] {prompt}",
    "quark": "[quantile 5] {prompt}",
}


def task_of(card: Card) -> str:
    """The name of the task for a method."""
    needs = {need.partition(" ")[0] for need in card.needs}
    if card.family == "reward-model" and "step-head" not in needs:
        return "judges"
    if card.schemas[0] != "prompt":
        return "teacher-texts" if "teacher" in needs else _BY_SCHEMA[card.schemas[0]]
    if card.name in _TOLD:
        return "told"
    if "teacher" in needs:
        return "teacher"
    return "rewards" if {"rewards", "preferences"} & needs else "alone"
