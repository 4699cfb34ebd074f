"""What each technique gives on its own: posttrain alone, one switch after the other, each row with all before it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benchmarks.bench.cases import CASES, GRADIENTS, Case
from benchmarks.bench.figures import figures, spread

WHOLE = 1_000_000
"""More tokens than any step has: logits of all of them at once."""


@dataclass(frozen=True)
class Variant:
    """A row of the table: what is on by now. ``settings`` are those that are not posttrain's default."""

    title: str
    settings: dict[str, Any] = field(default_factory=dict)
    share: bool = True


def variants(name: str) -> list[Variant]:
    """The rows of case ``name``, the plain way first, posttrain's defaults last but for what changes gradients."""
    case = CASES[name]
    padded = {"packing": False, "head_chunk_tokens": WHOLE}
    plain = Variant("padded, rows in order, full logits", padded | {"micro_batch_size": case.batch}, share=False)
    rows = [plain, Variant("+ length buckets, token budget", padded, share=False)]
    rows.append(Variant("+ packed rows", {"head_chunk_tokens": WHOLE}, share=False))
    if case.method != "sft":  # rows of supervised data have no prompt in common
        rows.append(Variant("+ shared prefix", {"head_chunk_tokens": WHOLE}))
    rows.append(Variant("+ chunked head"))
    rows.append(Variant("+ gradients in bfloat16 (`--bfloat16-gradients`)", GRADIENTS))
    return rows


def summary(case: Case, rows: list[Variant], runs: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Every row's speed and peak memory, and how far its losses lie from those of the plain way."""
    plain = runs[0][0]["losses"]
    found = []
    for variant, repeats in zip(rows, runs, strict=True):
        taken = [figures(case, one) for one in repeats]
        losses = repeats[0]["losses"]
        found.append(
            {
                "technique": variant.title,
                "tokens_per_second": spread([one["tokens_per_second"] for one in taken]),
                "peak_mb": spread([one["peak_mb"] for one in taken]),
                "loss_difference": max(abs(a - b) / abs(b) for a, b in zip(losses, plain, strict=True)),
            }
        )
    return {"title": case.title, "steps": len(plain), "repeats": len(runs[0]), "rows": found}
