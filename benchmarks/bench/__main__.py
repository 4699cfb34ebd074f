"""Side by side with TRL 1.16, and what each technique gives: ``make bench``, or ``python -m benchmarks.bench``.

Every measurement is a process of its own, the two sides in turn, so that a busy spell of the machine meets both.
Prints the tables and writes ``benchmarks/results/bench-PROCESSOR.json``; what is not measured again keeps its figures
as long as the conditions are the same. Exit status 1 if a claim is not met.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import tables
from benchmarks.bench import figures, material, processes, techniques
from benchmarks.bench.cases import CASES, Work

SLUG = re.sub(r"\W+", "-", processes.processor().lower()).strip("-")
RESULT = tables.RESULTS / f"bench-{SLUG}.json"
TECHNIQUES = ("sft", "dpo")
SINGLE = ("prefix", "lengths")
CHOICES = [*CASES, *(f"techniques-{name}" for name in TECHNIQUES), *SINGLE]


def main() -> int:
    """Run what was asked for, print it, write it down. Returns the exit status."""
    arguments = _arguments()
    wanted = arguments.case or CHOICES
    peer = processes.peer_python(arguments.peer_python) if set(wanted) & set(CASES) else ""
    facts = _facts(arguments, peer)
    results = _kept(Path(arguments.output), facts)
    with tempfile.TemporaryDirectory() as folder:
        material.write(Path(folder), Path(arguments.model), Path(arguments.gsm8k), Path(arguments.preferences))
        for name in wanted:
            part, found = _measure(name, Path(folder), arguments, peer)
            results[part] = {**results.get(part, {}), **found}
            _write(Path(arguments.output), facts, results)
    text = tables.render(json.loads(Path(arguments.output).read_text(encoding="utf-8")))
    print(text)
    print(f"written: {arguments.output}. Into README.md and docs/benchmarks.md: python -m benchmarks.tables")
    missed = _missed(results, wanted)
    for line in missed:
        print(f"MISSED: {line}", file=sys.stderr)
    return int(bool(missed))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--case", nargs="+", choices=CHOICES, help="only these [all]")
    parser.add_argument("--repeats", type=int, default=3, help="processes per side and case")
    parser.add_argument("--steps", type=int, help="optimiser steps [as each case has them]")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of each process [all cores]")
    parser.add_argument("--model", default=str(material.MODEL), help="transformers folder of SmolLM2-135M-Instruct")
    parser.add_argument("--gsm8k", default=str(material.GSM8K), help="JSONL with question and answer")
    parser.add_argument("--preferences", default=str(material.PREFERENCES), help="JSONL of preference pairs")
    parser.add_argument("--peer-python", help="interpreter that has TRL [one made in benchmarks/.peer when absent]")
    parser.add_argument("--output", default=str(RESULT))
    return parser.parse_args()


def _facts(arguments: argparse.Namespace, peer: str) -> dict[str, Any]:
    facts = {
        "machine": {"processor": processes.processor(), "cores": os.cpu_count(), "system": platform.system()},
        "threads": arguments.threads,
        "versions": {"posttrain": processes.versions(sys.executable, "posttrain")},
    }
    if peer:
        facts["versions"]["trl"] = processes.versions(peer, "trl")
    return facts


def _kept(file: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Figures taken before under the same conditions; the peer's versions count only where the peer is run."""
    if not file.exists():
        return {}
    before = json.loads(file.read_text(encoding="utf-8"))
    facts["versions"] = before["facts"]["versions"] | facts["versions"]
    return before["results"] if before["facts"] == facts else {}


def _write(file: Path, facts: dict[str, Any], results: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"facts": facts, "results": results}, indent=1) + "\n", encoding="utf-8")


def _measure(name: str, folder: Path, arguments: argparse.Namespace, peer: str) -> tuple[str, dict[str, Any]]:
    """The part of the results that ``name`` belongs to, and its figures there."""
    if name in SINGLE:
        result = folder / f"{name}.json"
        words = [sys.executable, "-m", f"benchmarks.bench.{name}", arguments.model, str(arguments.repeats), str(result)]
        _say(f"{name}: both ways in one process, {arguments.repeats} times")
        processes.call(words, arguments.threads)
        return "single", {name: json.loads(result.read_text(encoding="utf-8"))}
    if name in CASES:
        return "side_by_side", {name: _side_by_side(name, folder, arguments, peer)}
    case = name.removeprefix("techniques-")
    return "techniques", {case: _techniques(case, folder, arguments)}


def _side_by_side(name: str, folder: Path, arguments: argparse.Namespace, peer: str) -> dict[str, Any]:
    case = CASES[name]
    work = Work(name, str(folder), arguments.model, arguments.steps or case.steps, str(folder / "result.json"))
    pythons = {"posttrain": sys.executable, "trl": peer}
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in figures.SIDES}
    for repeat in range(arguments.repeats):
        for side in figures.SIDES:
            _say(f"{name}: {side}, repeat {repeat + 1} of {arguments.repeats}")
            runs[side].append(processes.measure(side, pythons[side], work, arguments.threads))
    return figures.summary(case, runs)


def _techniques(name: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    case, rows = CASES[name], techniques.variants(name)
    runs: list[list[dict[str, Any]]] = [[] for _ in rows]
    for repeat in range(arguments.repeats):
        for variant, found in zip(rows, runs, strict=True):
            _say(f"techniques of {name}: {variant.title}, repeat {repeat + 1} of {arguments.repeats}")
            steps, result = arguments.steps or case.steps, str(folder / "result.json")
            work = Work(name, str(folder), arguments.model, steps, result, variant.settings, variant.share)
            found.append(processes.measure("posttrain", sys.executable, work, arguments.threads))
    return techniques.summary(case, rows, runs)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _missed(results: dict[str, Any], wanted: list[str]) -> list[str]:
    """Claims that the figures of this run do not show."""
    found = []
    for name in wanted:
        found += [f"{name}: {line}" for line in results.get("side_by_side", {}).get(name, {}).get("missed", [])]
        for row in results.get("single", {}).get(name, []):
            if row["ratio"] < row["claimed"]:
                found.append(f"{row['name']}: {row['ratio']:.2f} times, claimed {row['claimed']:g}")
    return found


if __name__ == "__main__":
    sys.exit(main())
