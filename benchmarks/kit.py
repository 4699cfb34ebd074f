"""How long the conformance kit takes: one method complete, a new method to its passing check, a hundred static checks.

Run with ``python benchmarks/kit.py``; prints seconds of whole processes and writes ``results/kit.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
METHODS = ("sft", "reward", "dpo", "rloo", "grpo")
COUNT = 100
METADATA = "Metadata-Version: 2.4\nName: posttrain-method-{name}\nVersion: 0.1.0\n"


def timed(*words: str, path: Path | None = None) -> float:
    """Seconds of one ``posttrain`` command, which has to succeed; ``path`` is a folder like site-packages."""
    search = os.pathsep.join(str(place) for place in (ROOT / "core", path) if place)
    command = [sys.executable, "-m", "posttrain", *words]
    begun = time.perf_counter()
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": search}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"posttrain {' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return round(time.perf_counter() - begun, 1)


def hundred(folder: Path) -> Path:
    """A folder like site-packages with as many installed methods, each one a scaffold under another name."""
    from posttrain.authoring.new import new

    site = folder / "site"
    site.mkdir()
    for number in range(COUNT):
        name = f"fake-{number}"
        package = new(name, parent=folder) / f"posttrain_method_fake_{number}"
        package.rename(site / package.name)
        facts = site / f"posttrain_method_fake_{number}-0.1.0.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text(METADATA.format(name=name))
        (facts / "entry_points.txt").write_text(f"[posttrain.methods]\n{name} = {package.name}\n")
    return site


def main() -> None:
    """Take the figures and write them down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", action="append", choices=METHODS, help="check this one [all five]")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "kit.json")
    options = parser.parse_args()
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for method in options.method or METHODS:
            found[f"check {method}"] = timed("check", str(ROOT / "plugins" / method))
        found["new"] = timed("new", "my-loss", "--parent", place)
        found["new and check"] = round(found["new"] + timed("check", str(folder / "my-loss")), 1)
        site = hundred(folder)
        found[f"static checks of {COUNT} installed methods"] = timed("check", "--group", "static", path=site)
    for name, seconds in found.items():
        print(f"{name:<42}{seconds:>7.1f} s")
    options.output.write_text(json.dumps({"cores": os.cpu_count(), "seconds": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
