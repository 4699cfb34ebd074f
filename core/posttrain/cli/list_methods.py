"""``posttrain list-methods``: installed methods, and with ``--available`` those that could be installed."""

from __future__ import annotations

from typing import Any

from posttrain.catalogue.cards import SCHEMAS, TIERS
from posttrain.catalogue.catalogue import Known, known
from posttrain.catalogue.discovery import Installed, installed, modified
from posttrain.catalogue.inspection import problem_of
from posttrain.cli.flags import Parser
from posttrain.cli.output import print_json, print_table


def run(arguments: list[str]) -> int:
    """Print the methods that fit the filters."""
    parser = Parser("list-methods", "List methods. A broken plugin is one row with its reason.")
    parser.add_argument("--tier", choices=TIERS, help="only this tier")
    parser.add_argument("--schema", choices=SCHEMAS, help="only methods that train on this kind of data")
    parser.add_argument("--modifiers", action="store_true", help="only modifiers: train METHOD --modifier NAME")
    parser.add_argument("--available", action="store_true", help="also known methods that are not installed")
    parser.add_json()
    options = parser.parse_args(arguments)
    rows = [_installed(row) for row in installed()]
    if options.available:
        here = {row["name"] for row in rows}
        rows += [_known(fact) for name, fact in sorted(known().items()) if name not in here]
    rows = [row for row in rows if _fits(row, options.tier, options.schema)]
    if options.modifiers:
        rows = [row for row in rows if row["modifier"]]
    if options.json:
        print_json(rows)
    elif rows:
        print_table(["METHOD", "TIER", "SCHEMA", "VERSION", "SUMMARY"], [_cells(row) for row in rows])
        for row in rows:
            if row["note"]:
                print(f"{row['note']} Package: {row['distribution']} {row['version']}.")
    else:
        print("No method fits. All methods: posttrain list-methods --available")
    return 0


def _installed(row: Installed) -> dict[str, Any]:
    card = row.card
    return {
        "name": row.name,
        "tier": card.tier if card else None,
        "schemas": list(card.schemas) if card else [],
        "needs": list(card.needs) if card else [],
        "modifier": bool(card and card.modifier),
        "version": row.version,
        "summary": card.summary if card else "",
        "paper": card.paper if card else "",
        "distribution": row.distribution,
        "installed": True,
        "problem": problem_of(row),
        "note": modified(card) if card else None,
    }


def _known(fact: Known) -> dict[str, Any]:
    return {
        "name": fact.name,
        "tier": fact.tier,
        "schemas": list(fact.schemas),
        "needs": list(fact.needs),
        "modifier": fact.modifier,
        "version": None,
        "summary": fact.summary,
        "paper": fact.paper,
        "distribution": fact.distribution,
        "installed": False,
        "problem": None,
        "note": None,
    }


def _fits(row: dict[str, Any], tier: str | None, schema: str | None) -> bool:
    return (tier is None or row["tier"] == tier) and (schema is None or schema in row["schemas"])


def _cells(row: dict[str, Any]) -> list[str]:
    if row["problem"]:
        return [row["name"], "broken", "-", row["version"], f"{row['distribution']}: {row['problem']}"]
    version = row["version"] or "-"
    summary = row["summary"] if row["installed"] else f"{row['summary']} (pip install {row['distribution']})"
    schema = ",".join(row["schemas"]) + (" (modifier)" if row["modifier"] else "")
    return [row["name"], row["tier"], schema, version, summary]
