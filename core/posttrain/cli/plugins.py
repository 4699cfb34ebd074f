"""``posttrain plugins [audit]``: what is installed from which package, without importing any of it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import importlib_metadata

from posttrain.catalogue.discovery import installed, modified
from posttrain.catalogue.entries import entries
from posttrain.catalogue.inspection import problem_of
from posttrain.cli.flags import Parser
from posttrain.cli.output import print_json, print_table


def run(arguments: list[str]) -> int:
    """Print one row a plugin; ``audit`` adds the SHA-256 of every file of its package."""
    parser = Parser("plugins", "List installed plugins. Nothing of them is imported.")
    parser.add_argument("audit", nargs="?", choices=("audit",), help="add the SHA-256 of every file")
    parser.add_json()
    options = parser.parse_args(arguments)
    rows = _rows()
    if options.audit:
        for row in rows:
            row["files"] = _hashes(row.pop("_distribution"))
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
        for name, digest in row["files"].items():
            print(f"    sha256:{digest}  {name}")
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
    """SHA-256 of each file that the package's record lists and that is there; compiled files are left out."""
    digests: dict[str, str] = {}
    try:
        files = (distribution.files or []) if distribution else []
    except (ValueError, OSError):  # a record that cannot be read lists nothing
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if path.suffix != ".pyc" and path.is_file():
            digests[str(file)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return dict(sorted(digests.items()))
