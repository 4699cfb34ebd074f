"""From what the processes wrote down to the figures of the tables."""

from __future__ import annotations

import hashlib
import json
import statistics
from typing import Any

from benchmarks.bench.cases import Case

SIDES = ("posttrain", "trl")
#: Name of a figure -> whether more is better.
MORE_IS_BETTER = {
    "tokens_per_second": True,
    "steps_per_hour": True,
    "peak_mb": False,
    "ready_seconds": False,
    "generation_seconds": False,
    "rest_seconds": False,
}


def real_tokens(ids: list[list[list[int]]], rows: int, steps: int) -> list[int]:
    """Tokens without padding of each step that takes the next ``rows`` rows in order."""
    lengths = [sum(map(len, sequences)) for sequences in ids]
    return [sum(lengths[(step * rows + k) % len(lengths)] for k in range(rows)) for step in range(steps)]


def figures(case: Case, found: dict[str, Any]) -> dict[str, float]:
    """The figures of one process."""
    seconds = found["seconds"]
    result = {"peak_mb": found["peak_mb"], "ready_seconds": found["ready"]}
    if case.command:
        return {"ready_seconds": found["ready"]}
    if case.online:
        generation = statistics.mean(found["generation"])
        mean = statistics.mean(seconds)
        result |= {"steps_per_hour": 3600 / mean, "generation_seconds": generation, "rest_seconds": mean - generation}
        result["completion_length"] = statistics.mean(found["completion_length"])
        return result
    tokens = real_tokens(found["ids"], case.batch, len(seconds))
    return result | {"tokens_per_second": sum(tokens) / sum(seconds)}


def spread(values: list[float]) -> dict[str, float]:
    """Smallest, middle and largest of the repeats."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def digest(found: dict[str, Any]) -> str:
    """A hash of all token ids."""
    return hashlib.sha256(json.dumps(found.get("ids")).encode()).hexdigest()[:16]


def loss_table(case: Case, ours: dict[str, Any], theirs: dict[str, Any]) -> list[dict[str, float]]:
    """Both losses step by step and their relative difference; empty where they sample their own completions."""
    if case.online or case.command:
        return []
    pairs = zip(ours["losses"], theirs["losses"], strict=True)
    return [
        {"step": step, "posttrain": a, "trl": b, "difference": abs(a - b) / abs(b)}
        for step, (a, b) in enumerate(pairs, 1)
    ]


def summary(case: Case, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """All repeats of both sides of a case: every figure's spread, ratios of the medians, the losses."""
    by_side = {side: [figures(case, found) for found in runs[side]] for side in SIDES}
    names = list(by_side["posttrain"][0])
    sides = {side: {name: spread([one[name] for one in by_side[side]]) for name in names} for side in SIDES}
    first = [runs[side][0] for side in SIDES]
    losses = loss_table(case, *first)
    same_ids = case.command or digest(first[0]) == digest(first[1])
    ratios = {
        name: sides["posttrain"][name]["median"] / sides["trl"][name]["median"]
        for name in names
        if sides["trl"][name]["median"]
    }
    return {
        "case": case.name,
        "title": case.title,
        "repeats": len(runs["posttrain"]),
        "steps": len(first[0]["seconds"]),
        "same_ids": same_ids,
        **sides,
        "ratios": ratios,
        "losses": losses,
        "largest_difference": max((row["difference"] for row in losses), default=None),
        "missed": missed(case, ratios, losses, same_ids),
    }


def missed(case: Case, ratios: dict[str, float], losses: list[dict[str, float]], same_ids: bool) -> list[str]:
    """What the case claims and these figures do not show, one line each."""
    found = []
    speed = ratios.get("steps_per_hour" if case.online else "tokens_per_second", 0.0)
    if case.speed and speed < case.speed:
        found.append(f"speed is {speed:.2f} times the peer's, claimed {case.speed:g}")
    if case.memory and ratios["peak_mb"] > case.memory:
        found.append(f"peak memory is {ratios['peak_mb']:.2f} of the peer's, claimed {case.memory:g}")
    if case.command and ratios["ready_seconds"] >= 1:
        found.append(f"time to the first step is {ratios['ready_seconds']:.2f} of the peer's, claimed below 1")
    if not same_ids:
        found.append("the token ids of the rows differ")
    if any(not row["difference"] <= case.loss_bound for row in losses):
        found.append(f"losses differ by more than {case.loss_bound:g}")
    return found
