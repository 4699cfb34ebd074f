"""Writes the tables of recipes/README.md from the figures that were stored: ``python recipes/page.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- figures: python recipes/page.py -->", "<!-- end of figures -->"


def stored() -> dict[str, dict[str, Any]]:
    """What was found, by recipe."""
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(HERE.glob("*/expected.json"))}


def render(found: dict[str, dict[str, Any]]) -> str:
    """Both tables as Markdown."""
    lines = ["| recipe, small model | stage | figure | before | after | seconds of all |"]
    lines.append("|---|---|---|---|---|---|")
    for name, one in found.items():
        title, seconds = f"[{name}]({name}/README.md)", str(one["seconds"])
        for stage, metrics in one["figures"].items():
            for metric, (first, last) in metrics.items():
                lines.append(f"| {title} | {stage} | `{metric}` | {first:.3g} | {last:.3g} | {seconds} |")
                title = seconds = ""
    lines += ["", "| recipe, 8B | stage | GB | of it weights | teacher | generation |", "|---|---|---|---|---|---|"]
    for name, one in found.items():
        title = name
        for stage, parts in one["memory_gb"].items():
            cells = " | ".join(str(parts.get(part, "")) for part in ("total", "weights", "teacher", "generation"))
            lines.append(f"| {title} | {stage} | {cells} |")
            title = ""
    return "\n".join(lines)


def page(text: str) -> str:
    """The page with its tables renewed."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{render(stored())}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    path = HERE / "README.md"
    path.write_text(page(path.read_text()))
