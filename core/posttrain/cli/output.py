"""Plain tables and JSON for listings."""

from __future__ import annotations

import json
import shutil
from typing import Any


def print_json(value: Any) -> None:
    """Print ``value`` as indented JSON."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(headings: list[str], rows: list[list[str]]) -> None:
    """Print aligned columns; the last one is cut at the terminal's width, but the reason of a broken row never is."""
    widths = [max(len(row[i]) for row in [headings, *rows]) for i in range(len(headings) - 1)]
    total = shutil.get_terminal_size((1000, 24)).columns
    for row in [headings, *rows]:
        cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=True)]
        line = "  ".join([*cells, row[-1]])
        print((line if "broken" in row else line[:total]).rstrip())


def print_plan(plan: dict[str, Any]) -> None:
    """Print names and values below each other, nested ones indented."""
    for line in _lines(plan, ""):
        print(line)


def _lines(values: dict[str, Any], indent: str) -> list[str]:
    lines = []
    for key, value in values.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{key}:", *_lines(value, indent + "  ")]
        elif isinstance(value, list):
            lines.append(f"{indent}{key}: {', '.join(map(str, value)) or '-'}")
        else:
            lines.append(f"{indent}{key}: {value}")
    return lines
