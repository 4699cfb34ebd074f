"""Results of the league for each method: its score, and whether it beats its plain baseline."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.evaluation.statistics import Interval

#: Folder of the results in a repository.
RESULTS = Path("benchmarks", "league", "results")
#: Quantile of the normal distribution at 0.975.
_Z = 1.959963984540054
#: Digit of a problem with score 1, in the records.
DIGIT = 8
#: Figures beside the score.
OTHERS = ("turned", "likelier", "brier")
Record = dict[str, Any]


@dataclass(frozen=True)
class Standing:
    """Result of a method on its task."""

    method: str
    task: str
    score: Interval | None
    """Over seeds and held-out problems; None where no run succeeded."""
    seeds: dict[int, float] = field(default_factory=dict)
    rate: float = 0.0
    own_rate: bool = True
    """Whether the learning rate was chosen for this method; else it is the baseline's."""
    seconds: float = 0.0
    others: dict[str, float] = field(default_factory=dict)
    """Further figures, the mean over seeds."""
    baseline: str = ""
    against: Interval | None = None
    """Its score minus that of the baseline on the same problems and seeds; None for the baseline itself."""
    failed: str = ""

    @property
    def verdict(self) -> str:
        """Result of the difference: "failed", "baseline", "better", "worse" or "no different"."""
        if self.score is None:
            return "failed"
        if self.against is None:
            return "baseline"
        return "better" if self.against.low > 0 else "worse" if self.against.high < 0 else "no different"


@dataclass(frozen=True)
class League:
    """All standings for one size of the model, by task, best first."""

    setup: dict[str, Any]
    size: str
    tables: dict[str, list[Standing]]
    start: dict[str, float]
    """Task -> the score of the model before any training."""
    runs: int
    hours: float

    def standing(self, method: str) -> Standing | None:
        """Return a method's standing on its own task; None without runs. Baselines on other tasks do not count."""
        own = self.setup["own_task"].get(method)
        return next((one for one in self.tables.get(own, []) if one.method == method), None)


def read_league(root: Path, size: str = "small") -> League | None:
    """Read the league of the repository ``root``; None where nothing was run."""
    folder = root / RESULTS
    if not (folder / "runs.jsonl").is_file() or not (folder / "setup.json").is_file():
        return None
    setup = json.loads((folder / "setup.json").read_text(encoding="utf-8"))
    lines = map(json.loads, (folder / "runs.jsonl").read_text(encoding="utf-8").splitlines())
    records = [one for one in lines if one["size"] == size]
    return League(
        setup,
        size,
        {task: found for task in setup["tasks"] if (found := _table(records, task, setup))},
        _starts(records),
        len(records),
        sum(one["seconds"] for one in records) / 3600,
    )


def _starts(records: list[Record]) -> dict[str, float]:
    """Task -> the mean score of the model before any training, over the seeds that its answers were drawn with."""
    found: dict[str, list[float]] = {}
    for one in records:
        if not one["method"]:
            found.setdefault(one["task"], []).append(one["score"])
    return {task: sum(scores) / len(scores) for task, scores in found.items()}


def _table(records: list[Record], task: str, setup: dict[str, Any]) -> list[Standing]:
    """Return the standings of a task, best first."""
    own = [one for one in records if one["task"] == task and one["method"]]
    rates = _chosen_rates(own, setup)
    baseline = setup["tasks"][task]["baseline"]
    usual = rates.get(baseline, setup["rates"][1])
    final: dict[str, list[Record]] = {}
    for one in own:
        if "values" in one and one["rate"] == rates.get(one["method"], usual):
            final.setdefault(one["method"], []).append(one)
    plain = final.get(baseline) or [one for one in records if one["task"] == task and not one["method"]]
    spreads = (
        _pooled([[one["score"] for one in runs] for runs in final.values()]),
        _pooled([_gaps(runs, plain) for name, runs in final.items() if name != baseline]),
    )
    found = [_standing(runs, plain, spreads, baseline, name in rates) for name, runs in final.items()]
    reasons = {one["method"]: one["failed"] for one in own if "failed" in one and one["method"] not in final}
    found.sort(key=lambda one: (-one.score.mean if one.score else 0.0, one.method))
    return found + [Standing(name, task, None, failed=text, baseline=baseline) for name, text in reasons.items()]


def _chosen_rates(records: list[Record], setup: dict[str, Any]) -> dict[str, float]:
    """Map a method to the rate with the highest score on the tuning problems, where three were tried and it was run."""
    tried: dict[str, list[tuple[float, float]]] = {}
    for one in records:
        if one["seed"] == setup["tuning_seed"]:
            tried.setdefault(one["method"], []).append((one.get("score", -1.0), -one["rate"]))
    run = {(one["method"], one["rate"]) for one in records if "values" in one}
    best = {method: -max(found)[1] for method, found in tried.items() if len(found) > 2}
    return {method: rate for method, rate in best.items() if (method, rate) in run}


def _pooled(found: list[list[float]]) -> float:
    """Variance between the seeds of one method, pooled over the methods of a table; 0 where none has two seeds."""
    several = [one for one in found if len(one) > 1]
    if not several:
        return 0.0
    return sum(float(np.var(one, ddof=1)) * (len(one) - 1) for one in several) / sum(len(one) - 1 for one in several)


def _gaps(runs: list[Record], plain: list[Record]) -> list[float]:
    """A method's score minus the baseline's, for each seed that both have."""
    scores = {one["seed"]: one["score"] for one in plain}
    return [one["score"] - scores[one["seed"]] for one in runs if one["seed"] in scores]


def _standing(
    runs: list[Record], plain: list[Record], spreads: tuple[float, float], baseline: str, own_rate: bool
) -> Standing:
    """The standing of one method; ``spreads`` are the usual variances of a score and of a difference over seeds."""
    first = runs[0]
    others = {name: sum(one[name] for one in runs) / len(runs) for name in OTHERS if all(name in one for one in runs)}
    return Standing(
        first["method"],
        first["task"],
        _interval(_rows(runs), _variance([one["score"] for one in runs], spreads[0])),
        {one["seed"]: one["score"] for one in runs},
        first["rate"],
        own_rate,
        sum(one["seconds"] for one in runs) / len(runs),
        others,
        baseline,
        None if first["method"] == baseline else _against(runs, plain, spreads[1]),
    )


def _against(runs: list[Record], plain: list[Record], spread: float) -> Interval | None:
    """The difference to the baseline on the same seeds, problem by problem; None where they have no seed in common."""
    seeds = {one["seed"] for one in runs} & {one["seed"] for one in plain}
    if not seeds:
        return None
    ours, theirs = (_rows([one for one in found if one["seed"] in seeds]) for found in (runs, plain))
    return _interval(ours - theirs, _variance(_gaps(runs, plain), spread))


def _rows(runs: list[Record]) -> np.ndarray:
    """Return the score of each held-out problem, the mean over seeds ``(P,)``."""
    return np.mean([[int(digit) / DIGIT for digit in one["values"]] for one in runs], axis=0)


def _variance(seeds: list[float], spread: float) -> float:
    """Variance of a mean over seeds: that of these, at least the usual one of the table."""
    own = float(np.var(seeds, ddof=1)) if len(seeds) > 1 else 0.0
    return max(own, spread) / len(seeds)


def _interval(rows: np.ndarray, between_seeds: float) -> Interval:
    """Return the 95 % interval of a mean over problems and seeds: the sum of both means' variances."""
    mean = float(rows.mean())
    half = _Z * math.sqrt(float(rows.var(ddof=1)) / len(rows) + between_seeds)
    return Interval(mean, mean - half, mean + half)


def spearman(first: dict[str, float], second: dict[str, float]) -> float | None:
    """Return the rank correlation of two scores of the same methods, ties at their mean rank; None below three."""
    names = sorted(first.keys() & second.keys())
    if len(names) < 3:
        return None
    ranks = [_ranks(np.array([scores[name] for name in names])) for scores in (first, second)]
    if any(float(one.std()) == 0 for one in ranks):
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - counts + 1 + ends) / 2)[places]
