"""``posttrain plugins [audit]``: installed plugins by package, without importing any of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import importlib_metadata

from posttrain.catalogue.discovery import installed, modified
from posttrain.catalogue.entries import entries
from posttrain.catalogue.inspection import problem_of
from posttrain.cli.flags import Parser
from posttrain.cli.output import print_json, print_table
from posttrain.cli.plugins_lock import compare, digest, lock_of, write_lock
from posttrain.errors import SettingsError


def run(arguments: list[str]) -> int:
    """Print one row a plugin; ``audit`` adds the SHA-256 of every file of its package."""
    parser = Parser("plugins", "List installed plugins. Nothing of them is imported.")
    parser.add_argument("audit", nargs="?", choices=("audit",), help="add the SHA-256 of every file")
    parser.add_argument("--lock", type=Path, metavar="FILE", help="compare with a lock file; a difference is an error")
    parser.add_argument("--write-lock", type=Path, metavar="FILE", help="write a lock file of what is installed")
    parser.add_json()
    options = parser.parse_args(arguments)
    rows = _rows()
    if options.audit:
        for row in rows:
            row["files"] = _hashes(row.pop("_distribution"))
    if options.lock or options.write_lock:
        return _lock(rows, options)
    for row in rows:
        row.pop("_distribution", None)
    if options.json:
        print_json(rows)
        return 0
    headings = ["KIND", "NAME", "PACKAGE", "VERSION", "TIER", "ENTRY POINT", "STATE"]
    keys = ["kind", "name", "distribution", "version", "tier", "entry_point"]
    table = [[*(str(row[key] or "-") for key in keys), _state(row)] for row in rows]
    if not options.audit:
        print_table(headings, table)
        return 0
    for row, cells in zip(rows, table, strict=True):
        print("  ".join(cells))
        for name, found in row["files"].items():
            print(f"    sha256:{found}  {name}")
    return 0


def _lock(rows: list[dict[str, Any]], options: Any) -> int:
    if not options.audit:
        raise SettingsError("--lock and --write-lock belong to the audit: posttrain plugins audit --lock FILE")
    now = lock_of(rows)
    if options.lock:
        compare(options.lock, now)
        print(f"{len(now['packages'])} packages with plugins are as '{options.lock}' says")
    if options.write_lock:
        write_lock(options.write_lock, now)
        print(f"wrote {options.write_lock}: {len(now['packages'])} packages with plugins")
    return 0


def _state(row: dict[str, Any]) -> str:
    return f"broken: {row['problem']}" if row["problem"] else row["note"] or "ok"


def _rows() -> list[dict[str, Any]]:
    methods = {(row.name, row.distribution, row.version): row for row in installed()}
    rows = []
    for entry in entries():
        method = methods.get((entry.name, entry.package, entry.version)) if entry.kind == "method" else None
        card = method.card if method else None
        rows.append(
            {
                "kind": entry.kind,
                "name": entry.name,
                "distribution": entry.package,
                "version": entry.version,
                "tier": card.tier if card else None,
                "entry_point": entry.value,
                "problem": problem_of(method) if method else entry.problem,
                "note": modified(card) if card else None,
                "_distribution": entry.distribution,
            }
        )
    return sorted(rows, key=lambda row: (row["kind"], row["name"], row["distribution"]))


def _hashes(distribution: importlib_metadata.Distribution | None) -> dict[str, str]:
    """Return the SHA-256 of each existing file that the package's record lists; compiled files are left out."""
    digests: dict[str, str] = {}
    try:
        files = (distribution.files or []) if distribution else []
    except (ValueError, OSError):  # an unreadable record lists nothing
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if path.suffix != ".pyc" and path.is_file():
            digests[str(file)] = digest(path)
    return dict(sorted(digests.items()))
