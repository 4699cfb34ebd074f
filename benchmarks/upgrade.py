"""Upgrades posttrain over runs of an earlier version: ``python benchmarks/upgrade.py COMMIT`` after ``make dist``.

Wheels of the earlier version are built from its commit. In an environment of its own it trains ``sft`` with an adapter,
``dpo`` and ``grpo`` on the example, with checkpoints. Then the wheels of dist/ are installed over it, and each run is
shown, sampled from, and resumed for further steps. What happened is printed and written to ``results/upgrade.json``:
``works``, ``refused`` with the sentence, or ``failed``; a traceback is a failure. A run that goes on is compared with
one that the new version makes from the start: the largest relative difference of a loss.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(ROOT / ".ci")]

from benchmarks.installs import Environment  # noqa: E402
from dist import build, git  # noqa: E402  (found through the line above)

METHODS: dict[str, list[str]] = {"sft": ["--lora"], "dpo": [], "grpo": []}
STEPS, MORE = 4, 8
EXAMPLE = ["--model", "example", "--data", "example", "--progress", "quiet", "--schedule", "constant"]


def outcome(done: subprocess.CompletedProcess[str]) -> str:
    """One word or sentence on how a command ended."""
    if done.returncode == 0:
        return "works"
    said = done.stderr.strip() or done.stdout.strip()
    return f"failed: {said[-600:]}" if "Traceback" in said else f"refused: {said}"


def losses(run: Path) -> list[float]:
    """The losses of all steps of a run."""
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def train(environment: Environment, method: str, steps: int, run: Path) -> None:
    """Train a method on the example, with checkpoints; ends the program where that fails."""
    words = ["train", method, *EXAMPLE, *METHODS[method], "--steps", str(steps), "--save-every", "2"]
    done = environment.run("posttrain", *words, "--cache", environment.folder / "cache", "--output", run)
    if done.returncode:
        raise SystemExit(f"{method} could not be trained: {done.stderr[-600:]}")


def main() -> None:
    """Train with the old, go on with the new."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commit", help="of the earlier version")
    parser.add_argument("--wheels", type=Path, default=ROOT / "dist", help="folder that make dist has filled")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "upgrade.json")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        git("worktree", "add", "--detach", str(folder / "source"), options.commit)
        try:
            build(folder / "source", folder / "old", METHODS)
        finally:
            git("worktree", "remove", "--force", str(folder / "source"))
        environment = Environment(folder / "environment", folder / "old")
        for method in METHODS:
            if problem := environment.install(f"posttrain-method-{method}"):
                raise SystemExit(problem)
            train(environment, method, STEPS, folder / method)
        was = environment.run("posttrain", "--version").stdout.strip()
        names = [f"posttrain-method-{method}" for method in METHODS]
        wheels = ("--no-index", "--find-links", str(options.wheels.resolve()))
        found["pip install --upgrade"] = environment.pip("install", "--quiet", "--upgrade", *wheels, *names) or "works"
        print(f"{was} to {environment.run('posttrain', '--version').stdout.strip()}")
        for method in METHODS:
            run = folder / method
            found[f"{method}: report"] = outcome(environment.run("posttrain", "report", run))
            found[f"{method}: generate"] = outcome(environment.run("posttrain", "generate", run, "--prompt", "31="))
            found[f"{method}: resume"] = outcome(environment.run("posttrain", "resume", run, "--steps", MORE))
            if found[f"{method}: resume"] == "works":
                train(environment, method, MORE, folder / f"{method}-new")
                pairs = zip(losses(run), losses(folder / f"{method}-new"), strict=True)
                found[f"{method}: loss"] = max(abs(a - b) / max(abs(b), 1e-3) for a, b in pairs)
    for name, value in found.items():
        print(f"{name:<24}{value}")
    results = json.loads(options.output.read_text()) if options.output.is_file() else {}
    results[git("rev-parse", "--short", options.commit)] = {"from": was, "found": found}
    options.output.write_text(json.dumps(results, indent=1) + "\n")
    raise SystemExit(any(str(value).startswith("failed") for value in found.values()))


if __name__ == "__main__":
    main()
