"""posttrain's loss series against TRL's: same model, same rows in order, same hyper-parameters, separate processes.

    python benchmarks/parity/run.py --methods sft dpo reward

Prints step by step both losses and their relative difference, and the largest difference of the gradient norm. Exit
status 1 if any difference is above ``--bound`` or the token ids differ. README.md says what is compared and how.
Methods that are not installed are left out, and said so.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import cases  # noqa: E402  (found beside this file)
import table  # noqa: E402

PEERS = {False: "1.16.0", True: "1.10.0"}
"""Version of TRL, by whether a case wants the older one, the last that has the trainers which 1.16 has no more."""
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "PYTHONWARNINGS": "ignore",
}


def main() -> int:
    """Run the cases, print the tables, write the results. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=cases.METHODS, default=cases.METHODS)
    parser.add_argument("--case", action="append", choices=[case.name for case in cases.CASES], help="of these alone")
    parser.add_argument("--peer-python", help=f"interpreter that has TRL {PEERS[False]} [made when absent]")
    parser.add_argument("--older-peer-python", help=f"interpreter that has TRL {PEERS[True]} [made when absent]")
    parser.add_argument("--bound", type=float, default=1e-4, help="largest relative difference that passes")
    parser.add_argument("--output", default=str(HERE.parent / "results" / "parity.json"))
    arguments = parser.parse_args()
    missing = [name for name in arguments.methods if name not in entry_points(group="posttrain.methods").names]
    if missing:
        print(f"left out, not installed: {', '.join(missing)}")
    chosen = [case for case in cases.CASES if case.method in arguments.methods and case.method not in missing]
    chosen = [case for case in chosen if not arguments.case or case.name in arguments.case]
    named = {False: arguments.peer_python, True: arguments.older_peer_python}
    peers = {older: named[older] or _peer_python(older) for older in sorted({case.older for case in chosen})}
    ours = _versions(sys.executable, "posttrain")
    theirs = {older: _versions(python, "trl") for older, python in peers.items()}
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _call([sys.executable, str(HERE / "material.py"), name])
        for case in chosen:
            versions = {"posttrain": ours, "trl": theirs[case.older]}
            results.append(_compare(case, folder, peers[case.older]) | {"versions": versions})
    for result in results:
        _print(result)
    failed = [r["case"] for r in results if not r["same_ids"] or r["largest"] > arguments.bound]
    _summary(results, arguments.bound)
    output = Path(arguments.output)
    _write(output, {"bound": arguments.bound, "steps": cases.STEPS}, results, ours)
    print(f"written: {output}")
    if output.resolve() == table.RESULTS:
        table.write()
    if failed:
        print(f"FAILED: {'; '.join(failed)}. Expected equal token ids and differences of at most {arguments.bound:g}.")
    return int(bool(failed))


def _write(file: Path, facts: dict[str, Any], results: list[dict[str, Any]], ours: dict[str, str]) -> None:
    """Write the results; those of other cases stay if they were measured under the same conditions."""
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    before = kept.pop("cases", [])
    found = {case["case"]: case for case in before if kept == facts and case["versions"]["posttrain"] == ours}
    found |= {result["case"]: result for result in results}
    order = [found[case.name] for case in cases.CASES if case.name in found]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(facts | {"cases": order}, indent=1) + "\n", encoding="utf-8")


def _peer_python(older: bool) -> str:
    """The interpreter of a peer's own environment, which is made on the first call."""
    folder = HERE.parent / (".peer-older" if older else ".peer")
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ready = folder / "ready"
    if not ready.exists():
        print(f"Making the peer's environment in {folder} (about a minute)...", flush=True)
        _call([sys.executable, "-m", "venv", "--clear", str(folder)])
        # In this order: TRL alone would bring a newer torch.
        for packages in (["torch==2.13.0"], [f"trl=={PEERS[older]}", "transformers<5.20", "peft", "requests"]):
            _call([str(python), "-m", "pip", "install", "--quiet", *packages])
        ready.touch()
    return str(python)


def _compare(case: cases.Case, folder: Path, peer: str) -> dict[str, Any]:
    """Both sides of one case, and what lies between them."""
    print(f"running: {case.name}", flush=True)
    ours = _side(sys.executable, "ours.py", case, folder)
    theirs = _side(peer, "theirs.py", case, folder)
    losses, norms = (_differences(ours, theirs, name, case) for name in ("loss", "grad_norm"))
    pairs = zip(ours["steps"], theirs["steps"], losses, strict=False)
    table = [
        {"step": step, "ours": a["loss"], "theirs": b["loss"], "difference": difference}
        for step, (a, b, difference) in enumerate(pairs, 1)
    ]
    hashes = [fingerprint(side["ids"]) for side in (ours, theirs)]
    seconds = [statistics.median(step["seconds"] for step in side["steps"][1:]) for side in (ours, theirs)]
    return {
        "case": case.name,
        "same_ids": hashes[0] == hashes[1],
        "ids": hashes,
        "sequences": len(ours["ids"]),
        "series": table,
        "largest_loss": max(losses),
        "largest_grad_norm": max(norms),
        "largest": max(*norms, *losses),
        "seconds_per_step": {"ours": seconds[0], "theirs": seconds[1]},
    }


def fingerprint(ids: list[Any]) -> str:
    """A hash of token ids."""
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]


def _differences(ours: dict[str, Any], theirs: dict[str, Any], name: str, case: cases.Case) -> list[float]:
    """Relative difference step by step. A policy-gradient loss passes through 0, so it is measured against the series.

    A side that took another number of steps, or came to no number, differs without bound.
    """
    pairs = [(a[name], b[name]) for a, b in zip(ours["steps"], theirs["steps"], strict=False)]
    if not len(ours["steps"]) == len(theirs["steps"]) == cases.STEPS:
        return [float("inf")] * max(1, len(pairs))
    floor = statistics.mean(abs(b) for _, b in pairs) if case.online else 0.0
    finite = (math.isfinite(a) and math.isfinite(b) for a, b in pairs)
    return [
        abs(a - b) / max(abs(b), floor) if fine else float("inf") for (a, b), fine in zip(pairs, finite, strict=True)
    ]


def _side(python: str, script: str, case: cases.Case, folder: Path) -> dict[str, Any]:
    result = folder / "result.json"
    result.unlink(missing_ok=True)
    _call([python, str(HERE / script), str(folder), case.name, str(result)])
    return json.loads(result.read_text(encoding="utf-8"))


def _versions(python: str, package: str) -> dict[str, str]:
    code = (
        "import importlib.metadata as m, json; "
        f"print(json.dumps({{n: m.version(n) for n in ('{package}', 'torch', 'transformers')}}))"
    )
    return json.loads(_call([python, "-c", code]).splitlines()[-1])


def _call(command: list[str]) -> str:
    """Run a process; its output, or an end with what it said. A child inherits where posttrain lies, if that is set."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | ENVIRONMENT)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:3])} ended with status {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def _print(result: dict[str, Any]) -> None:
    same = "equal" if result["same_ids"] else "DIFFERENT"
    print(f"\n{result['case']}: token ids {same} ({' '.join(result['ids'])}, {result['sequences']} sequences)")
    print(f"{'step':>4} {'posttrain':>14} {'TRL':>14} {'relative difference':>20}")
    for row in result["series"]:
        print(f"{row['step']:>4} {row['ours']:>14.8f} {row['theirs']:>14.8f} {row['difference']:>20.1e}")


def _summary(results: list[dict[str, Any]], bound: float) -> None:
    print(f"\n{'case':<32} {'ids':<10} {'loss':>8} {'gradient norm':>14} {'seconds a step':>20}   bound {bound:g}")
    for result in results:
        ours, theirs = result["seconds_per_step"].values()
        print(
            f"{result['case']:<32} {'equal' if result['same_ids'] else 'DIFFERENT':<10} {result['largest_loss']:>8.1e} "
            f"{result['largest_grad_norm']:>14.1e} {ours:>8.3f} / {theirs:.3f} TRL"
        )


if __name__ == "__main__":
    sys.exit(main())
