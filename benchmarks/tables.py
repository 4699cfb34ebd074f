"""The tables of README.md and docs/benchmarks.md, from ``benchmarks/results/bench-*.json``, one file a processor.

``python -m benchmarks.tables`` writes them between their markers; with ``--check`` it changes nothing and its exit
status is 1 if a page is not in step.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "README.md", ROOT / "docs" / "benchmarks.md")
BEGIN, END = "<!-- figures: python -m benchmarks.tables -->", "<!-- end of figures -->"
#: Figure -> its name in a table, digits after the point, factor on the stored number.
ROWS = {
    "tokens_per_second": ("real tokens a second", 1, 1.0),
    "steps_per_hour": ("steps an hour", 0, 1.0),
    "generation_seconds": ("generation, seconds a step", 1, 1.0),
    "rest_seconds": ("the rest, seconds a step", 1, 1.0),
    "completion_length": ("tokens of a completion", 1, 1.0),
    "peak_mb": ("peak memory, GB", 2, 1 / 1000),
    "ready_seconds": ("seconds to the first step", 1, 1.0),
}
#: Cases of the README.
SHORT = ("sft", "dpo", "grpo")
MEGABYTE = 2**20 / 10**6
"""Megabytes in a mebibyte: the kernel counts in the latter, the tables in gigabytes of 1e9 bytes."""


def results() -> list[dict[str, Any]]:
    """The figures of each processor, those of the newest version first; the README shows the first."""
    found = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(RESULTS.glob("bench-*.json"))]
    return sorted(found, key=lambda one: Version(one["facts"]["versions"]["posttrain"]["posttrain"]), reverse=True)


def render(data: dict[str, Any], losses: bool = False) -> str:
    """All tables of ``data`` as Markdown; with ``losses`` also every step's."""
    facts, results = data["facts"], data["results"]
    if not results:
        return "No figures have been taken yet: `make bench` takes them."
    parts = [_conditions(facts)]
    if sides := results.get("side_by_side"):
        parts.append(_side_by_side(sides, facts))
        if losses:
            parts += [_losses(case) for case in sides.values() if case["losses"]]
    parts += [_techniques(found) for found in results.get("techniques", {}).values()]
    if single := results.get("single"):
        parts.append(_single(single))
    return "\n\n".join(parts)


def render_short(data: dict[str, Any]) -> str:
    """A table of the main figures for the README: speed and memory of each kind of work, in plain float32."""
    facts, sides = data["facts"], data["results"].get("side_by_side", {})
    trl = facts["versions"]["trl"]["trl"]
    lines = [
        f"| SmolLM2-135M, {facts['machine']['cores']} cores | posttrain | TRL {trl} | ratio |",
        "|---|---|---|---|",
    ]
    for name in SHORT:
        case = sides[name]
        for figure in ("tokens_per_second", "steps_per_hour", "peak_mb"):
            if figure in case["posttrain"]:
                ours, theirs = (_spread(case[side][figure], figure).split(" ")[0] for side in ("posttrain", "trl"))
                title = f"{case['title'].split(',')[0]}, {ROWS[figure][0]}"
                lines.append(f"| {title} | {ours} | {theirs} | {case['ratios'][figure]:.2f} |")
    return "\n".join(lines)


def _conditions(facts: dict[str, Any]) -> str:
    machine, versions = facts["machine"], facts["versions"]
    peer = f" and TRL {versions['trl']['trl']}" if "trl" in versions else ""
    return (
        f"SmolLM2-135M, float32 unless a row says otherwise, {machine['processor']}, {machine['cores']} cores, "
        f"threads: {facts['threads']}; posttrain {versions['posttrain']['posttrain']}{peer} on torch "
        f"{versions['posttrain']['torch']}, transformers {versions['posttrain']['transformers']}. "
        "Median of the repeats, least to most in brackets."
    )


def _side_by_side(sides: dict[str, Any], facts: dict[str, Any]) -> str:
    trl = facts["versions"]["trl"]["trl"]
    lines = [f"| work | figure | posttrain | TRL {trl} | posttrain / TRL |", "|---|---|---|---|---|"]
    for case in sides.values():
        title = f"{case['title']}; {_counted(case)}"
        for name, (label, _, _) in ROWS.items():
            if name not in case["posttrain"]:
                continue
            cells = [_spread(case[side][name], name) for side in ("posttrain", "trl")]
            ratio = f"{case['ratios'][name]:.2f}" if name in case["ratios"] and name != "completion_length" else ""
            lines.append(f"| {title} | {label} | {cells[0]} | {cells[1]} | {ratio} |")
            title = ""
        if case["losses"]:
            rows = "equal token ids" if case["same_ids"] else "UNEQUAL token ids"
            worst = f"{case['largest_difference']:.0e}"
            lines.append(f"| | loss, largest relative difference of {case['steps']} steps | | | {worst}, {rows} |")
    return "\n".join(lines)


def _losses(case: dict[str, Any]) -> str:
    lines = [f"{case['title']}, loss of each step:", "", "| step | posttrain | TRL | relative difference |"]
    lines.append("|---|---|---|---|")
    for row in case["losses"]:
        lines.append(f"| {row['step']} | {row['posttrain']:.6f} | {row['trl']:.6f} | {row['difference']:.1e} |")
    return "\n".join(lines)


def _techniques(found: dict[str, Any]) -> str:
    lines = [f"Techniques: {found['title']}; {_counted(found)}. Each row has all techniques before it.", ""]
    lines.append("| technique | real tokens a second | ratio | peak memory, GB | ratio | loss differs by |")
    lines.append("|---|---|---|---|---|---|")
    first = found["rows"][0]
    for row in found["rows"]:
        speed, memory = (row[name]["median"] / first[name]["median"] for name in ("tokens_per_second", "peak_mb"))
        cells = [_spread(row[name], name) for name in ("tokens_per_second", "peak_mb")]
        difference = f"{row['loss_difference']:.0e}"
        lines.append(f"| {row['technique']} | {cells[0]} | {speed:.2f} | {cells[1]} | {memory:.2f} | {difference} |")
    return "\n".join(lines)


def _single(single: dict[str, Any]) -> str:
    lines = ["| one technique alone, both ways in one process | seconds | ratio |", "|---|---|---|"]
    for row in (row for rows in single.values() for row in rows):
        before, after = (f"{one['median']:.2f}" for one in row["seconds"])
        times = f"{row['before']} {before}, {row['after']} {after}"
        lines.append(f"| {row['name']} | {times} | {row['ratio']:.2f} |")
    return "\n".join(lines)


def _counted(found: dict[str, Any]) -> str:
    return f"steps: {found['steps']}, repeats: {found['repeats']}"


def _spread(values: dict[str, float], name: str) -> str:
    _, digits, factor = ROWS[name]
    factor *= MEGABYTE if name == "peak_mb" else 1.0
    low, middle, high = (f"{values[key] * factor:,.{digits}f}" for key in ("min", "median", "max"))
    return middle if low == high else f"{middle} ({low} to {high})"


def page(text: str, found: list[dict[str, Any]], short: bool) -> str:
    """``text`` with the tables between its markers renewed; ``short``: with the main figures alone.

    Raises ValueError where it has no markers.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no place for the figures: expected a line '{BEGIN}' and a line '{END}'")
    each = [f"### {data['facts']['machine']['processor']}\n\n{render(data, losses=True)}" for data in found]
    tables = render_short(found[0]) if short else "\n\n".join(each)
    return f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}"


def main() -> int:
    """Write the pages, or compare them. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit status 1 if a page is not in step")
    check = parser.parse_args().check
    found = results()
    stale = []
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        renewed = page(text, found, short=path.parent.name != "docs")
        if renewed != text:
            stale.append(path.name)
            if not check:
                path.write_text(renewed, encoding="utf-8")
    print(f"{'not in step' if check else 'written'}: {', '.join(stale) or 'nothing'}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
