"""The lock file of ``posttrain plugins audit``: packages that bring plugins, and the SHA-256 of their files."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

from posttrain.errors import PluginError, SettingsError

FORM = 1


def lock_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the content of a lock file from the rows of an audit: each package once, in a fixed order."""
    packages: dict[str, Any] = {}
    code = functools.cache(code_of)
    for row in rows:
        package = packages.setdefault(row["distribution"], {"version": row["version"], "plugins": [], "files": {}})
        package["plugins"].append(f"{row['kind']} {row['name']} = {row['entry_point']}")
        package["files"] |= row["files"] | code(_top(row["entry_point"]))
    for package in packages.values():
        package["plugins"].sort()
        package["files"] = dict(sorted(package["files"].items()))
    return {"lock": FORM, "packages": dict(sorted(packages.items()))}


def code_of(top: str) -> dict[str, str]:
    """Return the SHA-256 of the files of a top-level module, wherever it would be imported from.

    The record of a package covers neither a checkout nor a module earlier on the path that would be imported in its
    place. Nothing is imported: the top-level name is looked up.
    """
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return {}
    if spec is None or spec.origin is None:
        return {}
    origin = Path(spec.origin)
    if spec.submodule_search_locations is None:
        return {f"{top}: {origin.name}": digest(origin)}
    files = [path for path in sorted(origin.parent.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    return {f"{top}: {path.relative_to(origin.parent).as_posix()}": digest(path) for path in files}


def _top(entry_point: str) -> str:
    return entry_point.partition(":")[0].partition(".")[0].strip()


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_lock(path: Path, lock: dict[str, Any]) -> None:
    """Write a lock file. Raises SettingsError where it cannot be written."""
    try:
        path.write_text(json.dumps(lock, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"lock file '{path}' cannot be written: {error.strerror}.") from None


def compare(path: Path, now: dict[str, Any]) -> None:
    """Raise PluginError with a line for each difference from the lock file; SettingsError for no such file."""
    try:
        lock = json.loads(path.read_text(encoding="utf-8"))
        packages = lock["packages"]
        known = lock["lock"] == FORM and isinstance(packages, dict)
    except OSError as error:
        raise SettingsError(
            f"lock file '{path}' cannot be read: {error.strerror}. Write one: posttrain plugins audit --write-lock FILE"
        ) from None
    except (ValueError, KeyError, TypeError, RecursionError):
        known = False
    if not known:
        raise SettingsError(f"'{path}' is no lock file. Write one: posttrain plugins audit --write-lock FILE")
    found = differences(packages, now["packages"])
    if found:
        raise PluginError(
            f"{len(found)} {'thing is' if len(found) == 1 else 'things are'} not as '{path}' says:\n  "
            + "\n  ".join(found)
            + "\nWhere this is meant, write it anew: posttrain plugins audit --write-lock FILE"
        )


def differences(locked: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return the changes, a line each; of the files of a package the first three."""
    lines = [f"{name}: gone" for name in locked if name not in now]
    for name, package in now.items():
        if name not in locked:
            lines.append(f"{name} {package['version']}: not in the lock file ({', '.join(package['plugins'][:3])})")
            continue
        before = locked[name]
        if before.get("version") != package["version"]:
            lines.append(f"{name}: version {package['version']}, locked is {before.get('version')}")
        for kind, ours, theirs in (
            ("new", package["plugins"], before.get("plugins", [])),
            ("gone", before.get("plugins", []), package["plugins"]),
        ):
            lines += [f"{name}: {kind} plugin '{plugin}'" for plugin in ours if plugin not in theirs]
        lines += _files(name, before.get("files", {}), package["files"])
    return lines


def _files(name: str, before: dict[str, str], now: dict[str, str]) -> list[str]:
    changed = [f"{file} changed" for file in now if file in before and now[file] != before[file]]
    changed += [f"{file} is new" for file in now if file not in before]
    changed += [f"{file} is gone" for file in before if file not in now]
    more = [f"{name}: and {len(changed) - 3} more files"] if len(changed) > 3 else []
    return [f"{name}: {text}" for text in changed[:3]] + more
