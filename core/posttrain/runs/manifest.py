"""Manifest of a checkpoint: size and digest of each file, written last, compared before anything is read."""

from __future__ import annotations

import hashlib
import json
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from posttrain.errors import CheckpointError
from posttrain.runs.json_file import read_object

NAME = "manifest.json"
#: Fastest digest of hashlib on processors with instructions for it (0.9 to 2 GB/s, blake2b 0.3 to 0.9).
DIGEST = "sha256"
#: Number of files digested at the same time.
_AT_ONCE = 4


def write_manifest(folder: Path) -> None:
    """Write ``manifest.json``: all files below ``folder`` with their sizes and digests."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / NAME)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        digests = list(pool.map(_digest, files))
    found = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "digest": digest}
        for path, digest in zip(files, digests, strict=True)
    }
    (folder / NAME).write_text(json.dumps({"digest": DIGEST, "files": found}, indent=1) + "\n", encoding="utf-8")


def find_damage(folder: Path) -> str | None:
    """Return the first fault of a checkpoint's files, None for a good one; without a manifest, visible faults alone."""
    try:
        if not (folder / NAME).is_file():
            return _find_visible_damage(folder)
        listed = read_object(folder / NAME, CheckpointError, "")
        if listed["digest"] != DIGEST:
            return f"{NAME} holds {listed['digest']} digests, which this version does not know"
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            problems = pool.map(lambda item: _compare(folder, *item), listed["files"].items())
            return next((problem for problem in problems if problem), None)
    except (CheckpointError, ValueError, KeyError, TypeError, AttributeError):
        return f"{NAME} is damaged"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"


def _compare(folder: Path, name: str, facts: dict[str, Any]) -> str | None:
    path = folder / name
    if not path.is_file():
        return f"{name} is missing"
    size = path.stat().st_size
    if size != facts["bytes"]:
        return f"{name} has {size} bytes instead of {facts['bytes']}"
    return None if _digest(path) == facts["digest"] else f"{name} differs from its checksum"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, DIGEST).hexdigest()


def _find_visible_damage(folder: Path) -> str | None:
    """Check a checkpoint of an earlier version, which has no manifest, for visible damage."""
    for name in ("state.json", "training.pt"):
        if not (folder / name).is_file():
            return f"{name} is missing"
    if not ((folder / "distributed").is_dir() or any(folder.glob("model/*.safetensors"))):
        return "it holds no weights"
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not _is_readable(path):
            return f"{path.relative_to(folder).as_posix()} is cut or damaged"
    return None


def _is_readable(path: Path) -> bool:
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt"):
                return True
        if path.suffix == ".pt":
            with zipfile.ZipFile(path) as archive:
                return archive.testzip() is None
        if path.name == "state.json":
            return isinstance(read_object(path, CheckpointError, "")["step"], int)
    except (CheckpointError, SafetensorError, zipfile.BadZipFile, ValueError, KeyError, TypeError):
        return False
    return True
