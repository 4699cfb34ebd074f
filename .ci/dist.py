"""Builds the wheels of a release into dist/: ``python .ci/dist.py``, what ``make dist`` runs.

The core, the conformance kit, every method, and ``posttrain-methods-all``, which has no code and depends on every
method in the very version that was built beside it. All wheels are built twice, the second time from a copy of the
files in another folder and with other file times; other bytes are an error. Times inside a wheel are those of the last
commit, or of ``SOURCE_DATE_EPOCH``.

``SHA256SUMS`` lists the wheels for ``sha256sum --check``; ``provenance.json`` says of which commit and with which tools
they were built, as an in-toto statement that can be signed (docs/releasing.md).
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).resolve().parent.parent
BUNDLE = "posttrain-methods-all"
BUNDLE_PROJECT = """\
[build-system]
requires = ["hatchling>=1.24"]
build-backend = "hatchling.build"

[project]
name = "{name}"
version = "{version}"
description = "Every method of posttrain {version}, stable and experimental."
license = "{licence}"
requires-python = "{python}"
dependencies = {dependencies}

[tool.hatch.build.targets.wheel]
bypass-selection = true
"""


def git(*words: str, root: Path = ROOT) -> str:
    """What git prints of the repository at ``root``; raises CalledProcessError where it is none."""
    return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout.strip()


def members(root: Path = ROOT, only: Iterable[str] = ()) -> list[Path]:
    """Folders of all distributions: the core, the kit, each method; with ``only`` of methods those of these names."""
    projects = sorted(path.parent for tier in ("plugins", "contrib") for path in root.glob(f"{tier}/*/pyproject.toml"))
    return [root, root / "testkit", *(path for path in projects if not only or path.name in only)]


def project_of(folder: Path) -> dict[str, Any]:
    """The table ``project`` of a folder's pyproject.toml."""
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def write_bundle(folder: Path, root: Path, methods: list[Path]) -> Path:
    """Write the project of the bundle of these methods, in the version of the core at ``root``."""
    core = project_of(root)
    pins = [f"{project['name']}=={project['version']}" for project in map(project_of, methods)]
    facts = {"name": BUNDLE, "version": core["version"], "licence": core["license"], "python": core["requires-python"]}
    folder.mkdir(parents=True)
    text = BUNDLE_PROJECT.format(**facts, dependencies=json.dumps(pins, indent=4))
    (folder / "pyproject.toml").write_text(text, encoding="utf-8")
    return folder


def build(root: Path, target: Path, only: Iterable[str] = ()) -> dict[str, str]:
    """Build every wheel of the repository at ``root``; SHA-256 by file name."""
    folders = members(root, only)
    with tempfile.TemporaryDirectory() as scratch:
        folders.append(write_bundle(Path(scratch) / BUNDLE, root, folders[2:]))
        for folder in folders:
            list(WheelBuilder(str(folder)).build(directory=str(target), versions=["standard"]))
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(target.glob("*.whl"))}


def copy_of(root: Path, target: Path) -> Path:
    """Copy what the wheels are made of, with other file times, to see that neither place nor time is in them."""
    unseen = shutil.ignore_patterns("__pycache__", ".*")
    tomorrow = time.time() + 86_400
    for name in ("core", "docs", "testkit", "plugins", "contrib"):
        shutil.copytree(root / name, target / name, ignore=unseen)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, target / name)
    for path in target.rglob("*"):
        os.utime(path, (tomorrow, tomorrow))
    return target


def provenance(sums: dict[str, str], epoch: str) -> dict[str, Any]:
    """An in-toto statement with SLSA's predicate: these wheels, of this commit, by these tools."""
    tools = {"python": sys.version.split()[0], "hatchling": version("hatchling")}
    source = {"uri": "git+local", "digest": {"gitCommit": git("rev-parse", "HEAD")}}
    changed = bool(git("status", "--porcelain", "--untracked-files=no"))
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in sums.items()],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "make dist",
                "externalParameters": {"SOURCE_DATE_EPOCH": epoch, "uncommitted_changes": changed},
                "internalParameters": tools,
                "resolvedDependencies": [source],
            },
            "runDetails": {"builder": {"id": ".ci/dist.py"}},
        },
    }


def main(words: list[str] | None = None) -> int:
    """Build, compare, write; the exit code."""
    parser = argparse.ArgumentParser(description="Build all wheels of a release, twice, and compare them.")
    parser.add_argument("--target", type=Path, default=ROOT / "dist", help="folder that gets the wheels; emptied first")
    parser.add_argument("--only", nargs="*", default=(), metavar="METHOD", help="methods to build instead of all")
    arguments = parser.parse_args(words)
    target = arguments.target.resolve()
    if target.exists() and any(path.suffix not in {".whl", ".json", ""} or path.is_dir() for path in target.iterdir()):
        parser.error(f"{target} has files that are no wheels. Name another folder with --target.")
    os.environ.setdefault("SOURCE_DATE_EPOCH", git("log", "-1", "--format=%ct"))
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    begun = time.monotonic()
    sums = build(ROOT, target, arguments.only)
    with tempfile.TemporaryDirectory() as scratch:
        again = build(copy_of(ROOT, Path(scratch) / "source"), Path(scratch) / "wheels", arguments.only)
    other = [name for name in sums if sums[name] != again.get(name)]
    if other or sums.keys() != again.keys():
        print(f"Not reproducible: {', '.join(other or sorted(sums.keys() ^ again.keys()))}", file=sys.stderr)
        return 1
    (target / "SHA256SUMS").write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()))
    statement = provenance(sums, os.environ["SOURCE_DATE_EPOCH"])
    (target / "provenance.json").write_text(json.dumps(statement, indent=1) + "\n")
    print(f"{len(sums)} wheels in {target}, each built twice with equal bytes, in {time.monotonic() - begun:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
