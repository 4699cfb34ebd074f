"""Results of an evaluation, and their folder."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.contract.images import Image
from posttrain.evaluation.statistics import Comparison, Interval, mean_interval
from posttrain.runs.durable import replace_text, writing

RESULT, SAMPLES, PAGE = "evaluation.json", "samples.jsonl", "evaluation.html"


@dataclass
class SetResult:
    """Results of one model on one set: figures with intervals, their values prompt by prompt, its answers."""

    kind: str
    """answers, texts, preferences, or suite."""
    rows: int
    figures: dict[str, Interval] = field(default_factory=dict)
    values: dict[str, list[float]] = field(default_factory=dict)
    lines: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    images: list[list[Image]] = field(default_factory=list, repr=False)
    """Images that each line's model was shown; empty where there are none."""

    def add(self, name: str, values: list[float], share: bool = False) -> None:
        """Add one value a prompt, and their mean; a ``share`` is bounded to between 0 and 1."""
        self.values[name] = values
        found = mean_interval(values)
        self.figures[name] = Interval(found.mean, max(0.0, found.low), min(1.0, found.high)) if share else found


@dataclass
class Evaluation:
    """Results of one evaluation, by the name of the set ("" for one without)."""

    model: str
    sets: dict[str, SetResult]
    against: str | None = None
    others: dict[str, SetResult] = field(default_factory=dict)
    """Results of the second model."""
    comparisons: dict[str, dict[str, Comparison]] = field(default_factory=dict)
    """Set -> figure -> the two models on the same prompts, first minus second."""
    asked: dict[str, Any] = field(default_factory=dict)
    """Arguments that repeat the evaluation."""

    def as_data(self) -> dict[str, Any]:
        """Return all figures, without samples, for programs."""
        found: dict[str, Any] = {"model": self.model, "sets": _figures(self.sets), "asked": self.asked}
        if self.against is not None:
            compared = {name: {k: c.as_data() for k, c in one.items()} for name, one in self.comparisons.items()}
            found |= {"against": self.against, "others": _figures(self.others), "comparisons": compared}
        return found

    def save(self, folder: str | Path) -> Path:
        """Write the figures, every sample and the page into ``folder``. Raises RunFailed where it cannot be written."""
        from posttrain.evaluation.page import render  # only the page needs jinja2

        folder = Path(folder)
        with writing(f"The evaluation in '{folder}'", "Choose another place: --output FOLDER"):
            folder.mkdir(parents=True, exist_ok=True)
            found = self.as_data() | {"values": {name or "data": one.values for name, one in self.sets.items()}}
            replace_text(folder / RESULT, json.dumps(found, ensure_ascii=False) + "\n")
            lines = [
                {"model": model, "set": name, **line}
                for model, sets in ((self.model, self.sets), (self.against, self.others))
                for name, one in sets.items()
                for line in one.lines
            ]
            replace_text(
                folder / SAMPLES, "".join(json.dumps(x, ensure_ascii=False, default=str) + "\n" for x in lines)
            )
            replace_text(folder / PAGE, render(self))
        return folder


def _figures(sets: dict[str, SetResult]) -> dict[str, Any]:
    return {
        name or "data": {
            "kind": one.kind,
            "rows": one.rows,
            "figures": {figure: interval.as_data() for figure, interval in one.figures.items()},
            "notes": one.notes,
        }
        for name, one in sets.items()
    }
