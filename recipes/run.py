"""Runs a recipe on a small model: ``python recipes/run.py NAME``. Minutes on one core, nothing is downloaded.

A recipe is a folder: ``data.py`` writes rows into ``data/``, ``1-METHOD.yaml`` and so on are the configurations of its
stages for a model of 8 billion parameters, and ``small.toml`` says what is other for a small model that is made on the
spot. Each stage is ``posttrain train --config``; its held-out figure before and after is compared with
``expected.json``. ``--quick`` takes two steps a stage and compares nothing, ``--store`` writes the figures down.
``--memory`` trains nothing: it prints, and with ``--store`` writes, what ``posttrain doctor`` estimates for the 8B
model.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import runpy
import shutil
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import small  # noqa: E402  (found through the line above)
from posttrain.cli.main import main as posttrain  # noqa: E402

NAMES = sorted(path.parent.name for path in HERE.glob("*/small.toml"))
#: Options of every small run.
COMMON: dict[str, Any] = {"device": "cpu", "cache": "off", "progress": "quiet", "report": False, "overwrite": True}
#: How far a figure may be from the stored one, of its own size or of 1, whichever is more.
TOLERANCE = 0.15


def flags(options: dict[str, Any]) -> list[str]:
    """Options of a table as flags of ``posttrain train``."""
    words: list[str] = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", str(value)]
    return words


def figure(run: Path, metric: str) -> list[float]:
    """A metric before and after a run: of held-out rows, else of its first and last three steps."""
    if metric.startswith("eval_"):
        events = map(json.loads, (run / "events.jsonl").read_text(encoding="utf-8").splitlines())
        values = [event["evidence"][metric] for event in events if event["code"] == "evaluation"]
        return [round(values[0], 4), round(values[-1], 4)]
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    values = [json.loads(line)[metric] for line in lines]
    return [round(sum(part) / len(part), 4) for part in (values[:3], values[-3:])]


def run(name: str, folder: Path, quick: bool = False) -> dict[str, dict[str, list[float]]]:
    """Run all stages of a recipe in a copy of its folder; each stage's figures. Raises SystemExit where one fails."""
    shutil.copytree(HERE / name, folder, dirs_exist_ok=True)
    found: dict[str, dict[str, list[float]]] = {}
    with contextlib.chdir(folder):
        plan = tomllib.loads(Path("small.toml").read_text(encoding="utf-8"))
        runpy.run_path("data.py", run_name="__main__")
        small.make(plan["models"], quick)
        for stage in plan["stages"]:
            options = COMMON | plan.get("options", {}) | stage.get("options", {})
            options |= {"steps": 2, "batch_size": 4, "limit": 64, "eval_batches": 1} if quick else {}
            if posttrain(["train", "--config", f"{stage['name']}.yaml", *flags(options)]):
                raise SystemExit(f"{name}: stage {stage['name']} failed")
            path = Path("runs", stage["name"])
            found[stage["name"]] = {metric: figure(path, metric) for metric in stage["figures"]}
    return found


def memory(name: str, folder: Path) -> dict[str, dict[str, float]]:
    """Gigabytes that each stage of a recipe takes with the model it names, by part of the estimate."""
    from posttrain.assembly.doctor import examine

    shutil.copytree(HERE / name, folder, dirs_exist_ok=True)
    found = {}
    with contextlib.chdir(folder):
        shapes = {name: small.shape(name, Path(name)) for name in small.SHAPES}
        for config in sorted(Path().glob("[1-9]-*.yaml")):
            model = re.findall(r"(?m)^model: (.+)$", config.read_text(encoding="utf-8"))[0]
            shape = shapes.get(model, shapes["Qwen/Qwen3-8B"])
            rows = examine(str(config), str(shape), None)["memory"]["strategies"]
            parts = next(row["memory_mb"] for row in rows if row["strategy"] == "single")
            found[config.stem] = {part: round(value * 2**20 / 1e9, 1) for part, value in parts.items()}
    return found


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Figures that are further from the stored ones than the tolerance."""
    return [
        f"{stage} {metric}: {values} instead of {stored}"
        for stage, metrics in expected.items()
        for metric, stored in metrics.items()
        for values in [found[stage][metric]]
        if any(abs(a - b) > TOLERANCE * max(1, abs(b)) for a, b in zip(values, stored, strict=True))
    ]


def main(words: list[str] | None = None) -> int:
    """Run recipes and compare; 1 where a figure is not as expected."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)} [all]")
    parser.add_argument("--quick", action="store_true", help="two steps a stage, nothing is compared")
    parser.add_argument("--memory", action="store_true", help="estimate the memory of the 8B model, train nothing")
    parser.add_argument("--store", action="store_true", help="write what was found into expected.json")
    options = parser.parse_args(words)
    if unknown := sorted({*options.names} - {*NAMES}):
        parser.error(f"No recipe is called {unknown[0]}. There are: {', '.join(NAMES)}")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    wrong: list[str] = []
    for name in options.names or NAMES:
        stored = HERE / name / "expected.json"
        expected = json.loads(stored.read_text(encoding="utf-8")) if stored.is_file() else {}
        begun = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            if options.memory:
                found = {"memory_gb": memory(name, Path(folder))}
            else:
                found = {"figures": run(name, Path(folder), options.quick)}
                found["seconds"] = round(time.monotonic() - begun)
        print(name, json.dumps(found))
        if options.store:
            expected = json.loads(stored.read_text(encoding="utf-8")) if stored.is_file() else {}
            stored.write_text(json.dumps(expected | found, indent=1) + "\n", encoding="utf-8")
        elif not (options.quick or options.memory):
            wrong += [f"{name} {line}" for line in differences(found["figures"], expected["figures"])]
    if wrong:
        print("\n".join(wrong))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
