"""The page of promotions: which criteria each candidate for stable meets; generated from what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

#: The criterion that a method has only where the figure was measured.
HELD_OUT = "peer's figure on held-out rows"
_INTRODUCTION = """\
# Promotions

Candidates for the tier stable, criterion by criterion ([what they are](stability.md#promotion)). A method that meets
all of them is stable; one that does not stays experimental, and its page says why.

- **strategies agree**: relative spread of the loss after four steps under single, ddp, fsdp, deepspeed (ZeRO 2; two
  processes each) and qlora. All train the same adapter on a base that four bits hold exactly, so qlora's base is that
  of the others.
- **peer**: largest relative difference of loss and gradient norm from TRL's over eight steps on the same rows, of which
  at most 0.0001 passes, as for every method in [parity](parity.md).
- **held out**: SmolLM2-135M, all weights in float32, trained for 100 steps here and by TRL on the same rows, with
  three seeds, each with rows of its own; one function measures all models on rows that none has seen. Our mean must lie
  in the 95 % interval over TRL's seeds, and the models of a seed must differ by at most 5 % of what training changed.
  Two seeds are the fewest; their interval is the wider one of two.
  `python benchmarks/parity/held_out.py` measures it, and says what the figures are.
- **options**: those of version 0.1.0, with their defaults.

`python -m benchmarks.promotions` measures all of it, `posttrain promote METHOD` asks again.
"""
#: Criterion, as ``posttrain promote`` names it -> head of its column.
_HEADS = {
    "no waivers": "no waivers",
    "conformance kit": "conformance",
    "trajectory": "trajectory",
    "strategies agree": "strategies agree",
    "published or peer figure": "peer",
    HELD_OUT: "held out",
    "options unchanged for a release": "options",
}
#: Criterion -> words before its figure that the column's head says already.
_SAID = {"strategies agree": "relative spread ", "published or peer figure": ""}


def read_promotions(results: Path) -> list[dict[str, Any]]:
    """What was measured of each candidate, from the folder of results; nothing where nothing was."""
    file = results / "promotions.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []


def page(rows: list[dict[str, Any]], mark: str) -> str:
    """``docs/promotions.md``."""
    head = f"| method | {' | '.join(_HEADS.values())} | tier |\n|{'---|' * (len(_HEADS) + 2)}"
    lines = [head, *(_row(one) for one in rows)]
    missing = [f"- `{one['method']}`: {text}" for one in rows if (text := _missing(one))]
    blocks = [f"<!-- {mark} -->", _INTRODUCTION.rstrip(), "\n".join(lines)]
    if any(_held_out(one) for one in rows):
        details = [(_held_out(one) or {}).get("detail", "not measured") for one in rows]
        said = [f"- `{one['method']}`: {detail}" for one, detail in zip(rows, details, strict=True)]
        blocks.append("## On held-out rows\n\n" + "\n".join(said))
    if missing:
        blocks.append("## What is missing\n\n" + "\n".join(missing))
    return "\n\n".join(blocks) + "\n"


def line(rows: list[dict[str, Any]], method: str) -> str | None:
    """What the page of an experimental candidate says it lacks; None for every other method."""
    missing = next((_missing(one) for one in rows if one["method"] == method), "")
    return f"Of the criteria for [stable](../promotions.md) it misses: {missing}." if missing else None


def _row(one: dict[str, Any]) -> str:
    found = {criterion["name"]: criterion for criterion in one["criteria"]}
    cells = [_cell(found[name]) if name in found else "not measured" for name in _HEADS]
    return f"| [{one['method']}](methods/{one['method']}.md) | {' | '.join(cells)} | {_tier(one)} |"


def _tier(one: dict[str, Any]) -> str:
    return "stable" if one["met"] else "experimental"


def _held_out(one: dict[str, Any]) -> dict[str, Any] | None:
    return next((each for each in one["criteria"] if each["name"] == HELD_OUT), None)


def _cell(criterion: dict[str, Any]) -> str:
    if not criterion["met"]:
        return "**no**"
    if criterion["name"] == HELD_OUT:
        return str(criterion["detail"]).partition(", untrained")[0]
    words = _SAID.get(criterion["name"])
    if words is None:
        return "yes"
    return str(criterion["detail"]).rpartition(words)[2].partition(" ")[0] if words else criterion["detail"].split()[0]


def _missing(one: dict[str, Any]) -> str:
    return "; ".join(f"{each['name']} ({each['detail']})" for each in one["criteria"] if not each["met"])
