"""DPO with full fine-tuning: time and memory with the reference's log-probs cached, and without.

    python benchmarks/reference_cache.py

The model is SmolLM2-135M-Instruct in ~/.cache/posttrain/smollm2-135m, the rows are the shortest of the preference data.
Each case runs in a process of its own, in turn, so that a busy spell of the machine meets all of them: "without" runs
the reference in every step, "first" finds an empty cache folder, "later" the one that "first" left. Time is that of
all optimiser steps, without loading and saving. The ratio is of the processor's seconds, which other work on the
machine lengthens less than the clock's; the clock's ratio stands beside it.
Exit status 1 if "first" is not at least ``--least`` times as fast as "without", or a loss differs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
DATA = ROOT.parent.parent / "shared" / "data" / "preferences.jsonl"
MODEL = Path("~/.cache/posttrain/smollm2-135m").expanduser()
CASES = ("without", "first", "later")
#: Largest relative difference of a loss that the order of sums explains.
LOSS_BOUND = 1e-3


def main() -> int:
    """Run all cases, print the table, write the results. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--least", type=float, default=1.1, help="smallest ratio of times that passes")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=3, help="rounds of all cases; the median counts")
    parser.add_argument("--output", default=str(ROOT / "results" / "reference_cache.json"))
    parser.add_argument("--case", nargs=2, metavar=("CASE", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not DATA.is_file() or not (MODEL / "config.json").is_file():
        print(f"reference_cache.py needs '{DATA}' and '{MODEL}'.", file=sys.stderr)
        return 2
    if arguments.case:
        print(json.dumps(_measure(*arguments.case, arguments.rows, arguments.epochs)))
        return 0
    return _report(arguments)


def _report(arguments: argparse.Namespace) -> int:
    rounds = [_round(arguments) for _ in range(arguments.repeat)]
    expected = rounds[0]["without"]["losses"]
    differences = [
        max(abs(a - b) / abs(b) for a, b in zip(one[case]["losses"], expected, strict=True))
        for one in rounds
        for case in CASES
    ]
    rows = []
    for case in CASES:
        row: dict[str, Any] = {"case": case}
        for name in ("processor_seconds", "clock_seconds", "peak_mb"):
            row[name] = statistics.median(one[case][name] for one in rounds)
        for name in ("processor_seconds", "clock_seconds"):
            row[f"{name}_each_round"] = [one[case][name] for one in rounds]
            ratios = [one["without"][name] / one[case][name] for one in rounds]
            row[f"times_as_fast_by_{name}"] = statistics.median(ratios)
        row["second_model"] = any(one[case]["model"] for one in rounds)
        rows.append(row)
    facts = {
        "model": MODEL.name,
        "rows": arguments.rows,
        "epochs": arguments.epochs,
        "threads": int(os.environ["OMP_NUM_THREADS"]),
        "tokens_per_epoch": rounds[0]["without"]["tokens"] // arguments.epochs,
        "largest_loss_difference": max(differences),
        "load_average": round(os.getloadavg()[1], 1),
        "processors": os.cpu_count(),
    }
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    print(f"{'case':<8} {'processor s':>11} {'times as fast':>13} {'clock s':>8} {'by clock':>8} {'peak MB':>8}  2nd")
    for row in rows:
        by_processor, by_clock = row["times_as_fast_by_processor_seconds"], row["times_as_fast_by_clock_seconds"]
        print(
            f"{row['case']:<8} {row['processor_seconds']:>11.1f} {by_processor:>13.2f} {row['clock_seconds']:>8.1f} "
            f"{by_clock:>8.2f} {row['peak_mb']:>8.0f}  {'loaded' if row['second_model'] else 'never loaded'}"
        )
    Path(arguments.output).parent.mkdir(parents=True, exist_ok=True)
    Path(arguments.output).write_text(json.dumps(facts | {"cases": rows}, indent=1) + "\n", encoding="utf-8")
    print(f"written: {arguments.output}")
    slow = rows[1]["times_as_fast_by_processor_seconds"] < arguments.least
    failed = slow or max(differences) > LOSS_BOUND or rows[2]["second_model"]
    if failed:
        print(
            f"FAILED: expected {arguments.least:g} times as fast, equal losses, and no second model in the later run."
        )
    return int(failed)


def _round(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """One measurement of each case, with a cache folder of its own."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            command = [sys.executable, __file__, "--case", case, folder]
            command += ["--rows", str(arguments.rows), "--epochs", str(arguments.epochs)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"The measurement failed:\n{done.stderr}")
            found[case] = json.loads(done.stdout.splitlines()[-1])
    return found


def _measure(case: str, folder: str, rows: int, epochs: int) -> dict[str, Any]:
    """One run: seconds and tokens of all steps, losses, peak memory, and whether there was a second model."""
    from posttrain import api, hookimpl

    class Clock:
        """Processor's seconds from the start of the first step to the end of the last."""

        begun = ended = 0.0

        @hookimpl
        def posttrain_run_started(self) -> None:
            self.begun = time.process_time()

        @hookimpl
        def posttrain_step_done(self) -> None:
            self.ended = time.process_time()

    clock = Clock()
    run = api.train(
        "dpo",
        model=str(MODEL),
        data=_shortest(rows),
        output=f"{folder}/{case}",
        cache=f"{folder}/cache",
        reference_cache=case != "without",
        epochs=float(epochs),
        batch_size=4,
        learning_rate=1e-6,
        device="cpu",
        progress="quiet",
        observers=[clock],
    )
    return {
        "processor_seconds": clock.ended - clock.begun,
        "clock_seconds": sum(line["seconds"] for line in run.metrics),
        "tokens": sum(line["tokens"] for line in run.metrics),
        "losses": [line["loss"] for line in run.metrics],
        "peak_mb": run.metrics[-1]["peak_memory_mb"],
        "model": run.compute.reference is not None and run.compute.reference.model is not None,
    }


def _shortest(count: int) -> list[dict[str, str]]:
    """The rows with the fewest characters among those whose answers have at least 200."""
    rows = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if min(len(row["chosen"]), len(row["rejected"])) >= 200]
    return sorted(rows, key=lambda row: len(row["prompt"] + row["chosen"] + row["rejected"]))[:count]


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
