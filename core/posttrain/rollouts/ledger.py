"""Ledger of every prompt: issued once, then pending until it is trained or dropped for a reason.

``ledger.jsonl`` has a line for each issued and each settled batch; every line of ``metrics.jsonl`` has the counts. A
prompt counts once for each time that the data's order reaches it.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from posttrain.errors import RunFailed

#: Why a rollout was not trained on.
STALE, UNKNOWN, UNSCORED = "stale", "nan-logps", "unscored"
FILTERED, SURPLUS, TRUNCATED = "filtered", "surplus", "truncated"


class Ledger:
    """Counts of this run, and the pending prompts."""

    def __init__(self) -> None:
        self.issued = self.trained = 0
        self.dropped: Counter[str] = Counter()
        self.pending: dict[int, list[int]] = {}
        """Rows of the data by the number of their batch."""
        self.lengths: dict[str, Counter[str]] = {}
        """Histogram of the lengths of dropped rollouts, for each reason."""

    def issue(self, number: int, rows: list[int]) -> dict[str, Any] | None:
        """Issue batch ``number``; return a line for the file, or None where it was pending (requested again)."""
        if number in self.pending:
            return None
        self.pending[number] = rows
        self.issued += len(rows)
        return {"batch": number, "state": "issued", "prompts": rows}

    def settle(self, number: int, fates: list[str]) -> dict[str, Any]:
        """Settle batch ``number`` with a reason for each dropped prompt, "" for the others.

        Raises RunFailed where it was not pending: a prompt would be trained on twice.
        """
        if len(self.pending.get(number, ())) != len(fates):
            raise RunFailed(
                f"The ledger has {len(self.pending.get(number, ()))} pending prompts in batch {number}, and "
                f"{len(fates)} were settled. Every prompt ends in one state only; this is an error of the program."
            )
        del self.pending[number]
        self.trained += fates.count("")
        self.dropped.update(fate for fate in fates if fate)
        return {"batch": number, "state": "settled", "fates": [fate or "trained" for fate in fates]}

    def lose(self, reason: str, length: int) -> None:
        """Count one rollout of ``length`` tokens as not trained on."""
        self.lengths.setdefault(reason, Counter())[bin_of(length)] += 1

    def metrics(self) -> dict[str, float]:
        """Return the counts since the run began."""
        found = {
            "prompts_issued": self.issued,
            "prompts_trained": self.trained,
            "prompts_dropped": sum(self.dropped.values()),
            "prompts_pending": sum(map(len, self.pending.values())),
        }
        found |= {f"prompts_dropped_{reason.replace('-', '_')}": count for reason, count in self.dropped.items()}
        return {name: float(value) for name, value in found.items()}

    def summary(self) -> dict[str, Any]:
        """Return the evidence of the event at the end of a run."""
        return {**self.metrics(), "dropped_lengths": {reason: dict(found) for reason, found in self.lengths.items()}}

    def saved(self) -> dict[str, Any]:
        """Return the ledger as plain values."""
        return {
            "counts": [self.issued, self.trained],
            "dropped": dict(self.dropped),
            "pending": self.pending,
            "lengths": {reason: dict(found) for reason, found in self.lengths.items()},
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Undo ``saved``."""
        self.issued, self.trained = saved["counts"]
        self.dropped = Counter(saved["dropped"])
        self.pending = dict(saved["pending"])
        self.lengths = {reason: Counter(found) for reason, found in saved["lengths"].items()}


def bin_of(length: int) -> str:
    """Return the bin of a length, by powers of two: "0", "1", "2", "3-4", "5-8", ..."""
    if length <= 2:
        return str(length)
    high = 1 << (length - 1).bit_length()
    return f"{high // 2 + 1}-{high}"


def audit(path: Path) -> dict[str, Any]:
    """Check ``ledger.jsonl``: rows by state, in order. Raises RunFailed for a prompt issued or settled twice."""
    pending: dict[int, list[int]] = {}
    seen: set[int] = set()
    found: dict[str, list[int]] = {}
    for text in path.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        number = line["batch"]
        if line["state"] == "issued":
            if number in seen:
                raise RunFailed(f"{path}: batch {number} was issued twice.")
            seen.add(number)
            pending[number] = line["prompts"]
            continue
        if len(pending.get(number, ())) != len(line["fates"]):
            raise RunFailed(f"{path}: batch {number} was settled, but it was not pending.")
        for row, fate in zip(pending.pop(number), line["fates"], strict=True):
            found.setdefault(fate, []).append(row)
    return found | {"pending": [row for rows in pending.values() for row in rows]}
