"""The page of all families of causal models, generated from measurements of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_INTRODUCTION = """\
# Architectures

Every family of transformers' causal models, as a tiny model with random weights (`python benchmarks/architectures.py`
and `python benchmarks/architecture_trips.py`; the test-suite repeats some). A run tries its own model in the same way
when it loads it: families are not listed anywhere in the code.

- **rows**: `packed`, behind each other without padding and exactly as each alone; `padded`, where the model cannot keep
  them apart; `refused`, where it cannot be trained exactly.
- **shared**: prompts that several rows begin with are computed once.
- **log-probs**, **gradients**: largest difference, over all forms tried, of rows together from plain transformers with
  eager attention, each row alone: in nats, and relative to the largest entry of all gradients. transformers computes
  softmaxes in float32, so its own code is exact to 1e-6.
- **sampled**: largest difference of a sampled token's log-prob from the whole text's.
- **greedy**: answers of the local sampler to prompts of unlike length, sampled together, are `model.generate`'s to each
  alone; `forward`: those of its forward passes, where `generate` disagrees with them or fails.
- **LoRA**: share of each kind of weight that the default targets reach. Embeddings, head and norms are left out by
  design; experts that are stacked matrices need `--lora-target-parameters`.
- **saved**, **adapter**: largest difference, in nats, of the saved model and of the saved adapter over its base, read
  again by transformers and peft alone.

`-` was not measured.
"""
#: Result of a family -> its wording on the page.
_KINDS = {
    "packed": "packed",
    "padded": "padded",
    "refused": "refused",
    "unbuilt": "that cannot be made small or need an absent package",
}
#: Kinds of weight that the default targets should reach.
_MEANT = ("attention", "MLP", "experts", "others")


def page(results: Path, mark: str) -> str | None:
    """Render docs/architectures.md; ``results`` is the folder of measurements. None where there are none."""
    forms = _read(results / "architectures.json")
    if not forms:
        return None
    trips = {one["name"]: one for one in _read(results / "architecture_trips.json")}
    families: dict[str, list[dict[str, Any]]] = {}
    for form in forms:
        families.setdefault(form["name"].split()[0], []).append(form)
    rows = [_row(name, found, trips.get(name)) for name, found in sorted(families.items())]
    heads = (
        "family",
        "forms",
        "rows",
        "shared",
        "log-probs",
        "gradients",
        "sampled",
        "greedy",
        "LoRA",
        "saved",
        "adapter",
    )
    head = "| " + " | ".join(heads) + " |\n|" + "---|" * len(heads)
    text = f"<!-- {mark} -->\n\n" + _INTRODUCTION + "\n" + _totals(families, trips) + "\n\n" + head + "\n"
    text += "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return text + "\n## Why\n\n" + "\n".join(_reasons(families, trips)) + "\n"


def _read(file: Path) -> list[dict[str, Any]]:
    return json.loads(file.read_text(encoding="utf-8"))["families"] if file.is_file() else []


def _totals(families: dict[str, list[dict[str, Any]]], trips: dict[str, dict[str, Any]]) -> str:
    kinds = [forms[0]["kind"] for forms in families.values()]
    known = [one for one in trips.values() if one["greedy"]]
    again = [one for one in trips.values() if one["saved"] is not None]
    adapted = [one for one in trips.values() if one["adapter"] is not None]
    sums = ", ".join(f"{kinds.count(kind)} {said}" for kind, said in _KINDS.items())
    furthest = [
        max((one[key] for one in found), default=None) for key, found in (("saved", again), ("adapter", adapted))
    ]
    return (
        f"{len(families)} families: {sums}. Greedy answers of {sum(one['greedy'] == 'equal' for one in known)} of "
        f"{len(known)} families are `generate`'s. {len(again)} were saved and read again (largest difference "
        f"{_number(furthest[0])}), {len(adapted)} with an adapter ({_number(furthest[1])})."
    )


def _row(name: str, forms: list[dict[str, Any]], trip: dict[str, Any] | None) -> list[str]:
    kinds = "/".join(dict.fromkeys(form["kind"] for form in forms))
    right = [form for form in forms if form["kind"] in ("packed", "padded")]
    sampled = [form["sampled"] for form in right if form["sampled"] is not None]
    cells = [f"`{name}`", str(len(forms)), kinds]
    cells.append("-" if trip is None or not trip["dtype"] else "yes" if trip["shared"] else "no")
    cells += [_number(max((form[key] for form in right), default=None)) for key in ("logps", "gradients")]
    cells.append(_number(max(sampled, default=None)))
    if trip is None:
        return cells + ["-"] * 4
    said = trip["greedy"]
    greedy = {"equal": "equal", "": "-"}.get(said, "forward" if said.startswith("as ") else "see below")
    reach = ", ".join(f"{kind} {_share(trip['reach'][kind])}" for kind in _MEANT if kind in trip["reach"])
    return [*cells, greedy, reach or "-", _number(trip["saved"]), _number(trip["adapter"])]


def _number(value: float | None) -> str:
    return "-" if value is None else "0" if value == 0 else f"{value:.0e}"


def _share(share: float) -> str:
    return f"{100 * share:.3g} %"


def _reasons(families: dict[str, list[dict[str, Any]]], trips: dict[str, dict[str, Any]]) -> list[str]:
    """Return a line for each fact that a family reports of itself, and for each missing measurement."""
    found = []
    for name, forms in sorted(families.items()):
        lines = [form["line"] for form in forms if form["line"]]
        trip = trips.get(name)
        if trip is not None:
            lines += [text for text in (trip["greedy"], trip["line"]) if text not in ("", "equal")]
        found += [f"- `{name}`: {' '.join(line.split())}" for line in dict.fromkeys(lines)]
    return found
