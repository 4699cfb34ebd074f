"""The page of methods on models with images and mixtures of experts: generated from measurements of both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_INTRODUCTION = """\
# Methods on images and experts

A method is a function of log-probabilities, so each trains any model, unchanged. What was measured on models of a few
ten thousand parameters on a CPU:

## Every method

The training checks of the conformance kit, of every method in this repository, on a LLaVA with its image encoder
(`python benchmarks/kit_families.py vision`) and on a Mixtral of four experts with its router loss (`experts`): a run
that is resumed half-way goes on in the same bits; micro-batches of one example, and rows padded instead of packed, give
the same loss and gradient norm. One method is checked with `posttrain check NAME --family vision --group training`,
which also asks that the reward rises, or the loss falls. By `nash-md`, `xpo` and `online-ipo` it rises too slowly for
the 16 steps on this model, with pictures or without: the kit waives it and says why.

| models | methods | pass | fail |
|---|--:|--:|--:|
"""
_TABLE = """
## Stable methods, family by family

`python benchmarks/families.py`; for each method the largest difference, relative where a number is above 1, of loss,
gradient norm, reward, margin and router loss:

- **cut**: micro-batches of one example from whole steps of six, in float64;
- **ddp**, **fsdp**: two processes from one, in float32;
- **resumed**: a run stopped after two of four steps ends with the same numbers and weights, to the bit.

| family | method | cut | ddp | fsdp | resumed |
|---|---|--:|--:|--:|---|
"""
_NAMES = {"vision": "images (LLaVA)", "experts": "experts (Mixtral)"}


def page(results: Path, mark: str) -> str | None:
    """Render docs/families.md; ``results`` is the folder of measurements. None where there are none."""
    kits = {name: _read(results / f"kit_{name}.json") for name in _NAMES}
    table = _read(results / "families.json")
    if not table or not all(kits.values()):
        return None
    text = f"<!-- {mark} -->\n\n{_INTRODUCTION}"
    text += "".join(_totals(name, kit) for name, kit in kits.items())
    text += "".join(_failures(name, kit) for name, kit in kits.items())
    return text + _TABLE + "".join(_row(family, method, found) for family, method, found in _measured(table))


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _totals(name: str, kit: dict[str, Any]) -> str:
    failed = sum("failed" in one for one in kit.values())
    return f"| {_NAMES[name]} | {len(kit)} | {len(kit) - failed} | {failed} |\n"


def _failures(name: str, kit: dict[str, Any]) -> str:
    """Return a line for each method and reason of its failed checks; nothing where all passed."""
    found: dict[tuple[str, str], list[str]] = {}
    for method, one in kit.items():
        for check, what in one.get("failed", {}).items():
            found.setdefault((method, what), []).append(f"`{check}`")
    return "".join(
        f"\n- `{method}` on {_NAMES[name]} ({', '.join(checks)}): {what}\n" for (method, what), checks in found.items()
    )


def _measured(table: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(family, method, found) for family, methods in table.items() for method, found in methods.items()]


def _row(family: str, method: str, found: dict[str, Any]) -> str:
    figures = " | ".join(f"{found[name]:.0e}" for name in ("cut", "ddp", "fsdp"))
    return f"| `{family}` | {method} | {figures} | {'equal' if found['resumed'] else 'DIFFERENT'} |\n"
