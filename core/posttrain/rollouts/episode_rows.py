"""Rows for offline methods from the episodes of a run: demonstrations, preference pairs, labelled answers."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from posttrain.contract.messages import as_messages, is_messages
from posttrain.errors import DataError
from posttrain.runs.tail import Tail

Row = dict[str, Any]
KINDS = ("sft", "dpo", "kto")


def rows_of(run: str | Path, kind: str, at_least: float | None = None) -> list[Row]:
    """Return rows of ``kind`` from the episodes of ``run``.

    "sft": episodes with a reward of ``at_least`` [above their prompt's mean]; "dpo": the best and the worst of each
    prompt, where they differ; "kto": all, desirable from ``at_least`` on [their prompt's mean]. Raises DataError where
    there are none.
    """
    make = {"sft": _demonstrations, "dpo": _pairs, "kto": _labelled}[kind]
    found = [row for group in _groups(run) for row in make(group, at_least)]
    if not found:
        raise DataError(
            f"No episode of '{run}' makes a row for {kind}: all answers to a prompt were worth the same, or none "
            "reached the bar. Choose another with --at-least VALUE."
        )
    if any(_unseen(value) for row in found for value in row.values()):
        raise DataError(
            f"Episodes of '{run}' show pictures that were no files, and episodes.jsonl does not hold them. Expected an "
            "environment whose image parts name files."
        )
    return found


def _unseen(value: Any) -> bool:
    """Return whether messages have an image part that names no file."""
    contents = [one.get("content") for one in value] if is_messages(value) else []
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return any(part.get("type") == "image" and "path" not in part for part in parts)


def read_episodes(run: str | Path) -> list[Row]:
    """Read the complete lines of ``episodes.jsonl``. Raises DataError for a run that has none."""
    file = Path(run) / "episodes.jsonl"
    if not file.is_file():
        raise DataError(f"'{run}' has no episodes.jsonl. Expected the folder of a run with --environment or --tools.")
    return Tail(file).new()


def _groups(run: str | Path) -> Iterator[list[Row]]:
    """Yield the episodes of each prompt of each step."""
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
