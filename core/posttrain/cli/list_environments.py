"""``posttrain list-environments``: the installed environments, or one of them in full."""

from __future__ import annotations

import inspect
import json
from typing import Any

from posttrain.assembly.environment import find_task
from posttrain.catalogue.described import described
from posttrain.catalogue.entries import Entry, entries
from posttrain.cli.flags import Parser
from posttrain.cli.output import print_json, print_table
from posttrain.settings import EpisodeSettings


def run(arguments: list[str]) -> int:
    """Print the installed environments, or one with its tools and a row."""
    parser = Parser("list-environments", "List environments, or show one: its tools, its options, a row.")
    parser.add_argument("name", nargs="?", help="an installed name, file.py:CLASS, or http://HOST:PORT")
    parser.add_json()
    options = parser.parse_args(arguments)
    if options.name is not None:
        _show(options.name, options.json)
        return 0
    rows = [_row(entry) for entry in sorted(entries("environment"), key=lambda one: one.name)]
    if options.json:
        print_json(rows)
    elif rows:
        cells = [[row["name"], ", ".join(row["tools"]) or "-", row["package"], row["summary"]] for row in rows]
        print_table(["ENVIRONMENT", "TOOLS", "PACKAGE", "SUMMARY"], cells)
    else:
        print("No environment is installed. Write one: posttrain new NAME --kind environment")
    return 0


def _row(entry: Entry) -> dict[str, Any]:
    """Return what the code of one environment says, which is read and not run; for unreadable code the reason."""
    seen = described(entry)
    found: dict[str, Any] = {
        "name": entry.name,
        "package": f"{entry.package} {entry.version}",
        "license": _license(entry),
    }
    found |= {"tools": seen.tools, "summary": seen.problem or seen.summary}
    return found | ({"problem": seen.problem} if seen.problem else {})


def _license(entry: Entry) -> str | None:
    facts = entry.distribution.metadata if entry.distribution is not None else None
    return None if facts is None else facts.get("License-Expression") or facts.get("License")


def _summary(kind: Any) -> str:
    return (inspect.getdoc(kind) or "").partition("\n")[0]


def _show(name: str, as_json: bool) -> None:
    task = find_task(EpisodeSettings(environment=name))
    assert task is not None
    rows = task.rows() or []
    options = [str(one) for one in inspect.signature(task.kind).parameters.values()]
    facts = {
        "name": task.name,
        "summary": _summary(task.kind),
        "options": options,
        "tools": task.tools,
        "rows": len(rows),
        "row": rows[0] if rows else None,
    }
    if as_json:
        print_json(facts)
        return
    print(f"{task.name}: {facts['summary']}\n")
    print(f"options: {', '.join(options) or 'none'}")
    for one in task.tools:
        function = one["function"]
        print(f"tool:    {function['name']}: {function.get('description', '')}")
    print(f"rows:    {f'{len(rows)} by default; --environment-options size=N,seed=N' if rows else 'none, give --data'}")
    if rows:
        print(f"a row:   {json.dumps(rows[0], ensure_ascii=False)}")
    print(f"\nTrain:   posttrain train grpo --model MODEL --environment {name}")
