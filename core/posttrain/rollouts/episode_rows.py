"""Rows for offline methods from the episodes of a run: what went well, what went better than what."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from posttrain.contract.messages import as_messages
from posttrain.errors import DataError
from posttrain.runs.tail import Tail

Row = dict[str, Any]
KINDS = ("sft", "dpo", "kto")


def rows_of(run: str | Path, kind: str, at_least: float | None = None) -> list[Row]:
    """Rows of ``kind`` from the episodes of ``run``.

    "sft": episodes with a reward of ``at_least`` [those that beat the mean of their prompt's]; "dpo": the best against
    the worst of each prompt, where they differ; "kto": all, good where they reach ``at_least`` [the mean of their
    prompt's]. Raises DataError where there are none.
    """
    make = {"sft": _demonstrations, "dpo": _pairs, "kto": _labelled}[kind]
    found = [row for group in _groups(run) for row in make(group, at_least)]
    if not found:
        raise DataError(
            f"No episode of '{run}' makes a row for {kind}: all answers to a prompt were worth the same, or none "
            "reached the bar. Choose another with --at-least VALUE."
        )
    return found


def read_episodes(run: str | Path) -> list[Row]:
    """The lines of ``episodes.jsonl``, without one that is being written. Raises DataError for a run that has none."""
    file = Path(run) / "episodes.jsonl"
    if not file.is_file():
        raise DataError(f"'{run}' has no episodes.jsonl. Expected the folder of a run with --environment or --tools.")
    return Tail(file).new()


def _groups(run: str | Path) -> Iterator[list[Row]]:
    """The episodes of one prompt at one step, for each."""
    lines = [line for line in read_episodes(run) if line["end"] != "error"]
    for _, group in groupby(lines, key=lambda line: (line["step"], line["group"])):
        yield list(group)


def _tools(line: Row) -> Row:
    return {"tools": line["tools"]} if line.get("tools") else {}


def _mean(group: list[Row]) -> float:
    return sum(line["reward"] for line in group) / len(group)


def _demonstrations(group: list[Row], at_least: float | None) -> list[Row]:
    mean = _mean(group)
    good = [line for line in group if (line["reward"] > mean if at_least is None else line["reward"] >= at_least)]
    return [
        {"messages": [*as_messages(line["prompt"]), *line["messages"]], "score": line["reward"]} | _tools(line)
        for line in good
    ]


def _pairs(group: list[Row], at_least: float | None) -> list[Row]:
    best, worst = max(group, key=lambda line: line["reward"]), min(group, key=lambda line: line["reward"])
    if best["reward"] == worst["reward"] or (at_least is not None and best["reward"] < at_least):
        return []
    scores = {"chosen_score": best["reward"], "rejected_score": worst["reward"]}
    rows = {"prompt": as_messages(best["prompt"]), "chosen": best["messages"], "rejected": worst["messages"]}
    return [rows | scores | _tools(best)]


def _labelled(group: list[Row], at_least: float | None) -> list[Row]:
    bar = _mean(group) if at_least is None else at_least
    if at_least is None and len({line["reward"] for line in group}) == 1:
        return []
    return [
        {"prompt": as_messages(line["prompt"]), "completion": line["messages"], "label": line["reward"] >= bar}
        | _tools(line)
        for line in group
    ]
