"""docs/parity.md from the measured results: ``python benchmarks/parity/table.py`` (``run.py`` does it too)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "parity.json"
PAGE = ROOT / "docs" / "parity.md"
DIFFERS = {
    "grpo": "divergence times the importance ratio by default",
    "dr-grpo": "divergence times the importance ratio, and rewards scaled, by default",
    "gspo": "divergence times the importance ratio by default",
    "ipo": "always divides log-ratios by length",
    "simpo": "adds a likelihood term by default",
    "cpo": "likelihood term depends on the number of passes",
    "orpo": "likelihood of the prompt too; depends on the number of passes",
    "aot": "sorts within a forward pass, not within the step",
    "kto": "baseline of a forward pass, from the row before; not of the step, from the row after",
    "bco": "moves the shift between the passes of a step",
    "grpo-replay-buffer": "replaces groups only if the whole batch has no spread",
    "ppo": "one more state after the stop token; no gradient clipping; a critic of its own",
    "prm-step": "adds the passes' means",
    "online-dpo": "ties: the first answer wins; no start token; log-probabilities at temperature 1",
    "nash-md": "log-ratio of each token, not of the answer; log-probabilities at temperature 1",
    "xpo": "ties: the policy's answer wins; log-probabilities at temperature 1",
    "gkd": "divides by the number of the data's tokens; no temperature in the divergence",
    "gold": "its default reads spans one place too late; pairs special tokens by name, not by purpose",
    "minillm": "gradient through rewards; padding counts; a token's own reward counts twice",
    "reinforce-plus-plus": "has no such trainer: its PPO with values of 0 is one",
}
"""What TRL defines otherwise, by method; equations and sizes stand in benchmarks/parity/README.md."""
_HEAD = """\
# Parity with TRL

<!-- Made from benchmarks/results/parity.json by benchmarks/parity/table.py. -->

The same tiny model, rows in the same order and hyper-parameters, trained by posttrain and by TRL, each in its own
process: {steps} optimiser steps in float32, token ids compared first. The figures are the largest relative differences
of the loss and of the gradient norm before clipping over all steps; at most {bound:g} passes. Where TRL defines
something otherwise than the paper, the difference is switched off on one side; its equation and size, and how to
repeat the comparison, stand in [benchmarks/parity](../benchmarks/parity/README.md).

| method | case | TRL | loss | gradient norm | TRL defines otherwise |
|---|---|---|---:|---:|---|
"""


def render(results: dict[str, Any]) -> str:
    """The page for the content of ``parity.json``."""
    return _HEAD.format(steps=results["steps"], bound=results["bound"]) + "".join(map(_row, results["cases"]))


def _row(result: dict[str, Any]) -> str:
    method, _, rest = result["case"].partition(", ")
    cells = [
        f"`{method}`",
        rest,
        result["versions"]["trl"]["trl"],
        f"{result['largest_loss']:.1e}",
        f"{result['largest_grad_norm']:.1e}",
        DIFFERS.get(method, ""),
    ]
    return f"| {' | '.join(cells)} |\n"


def write() -> None:
    """Write the page."""
    PAGE.write_text(render(json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")
    print(f"written: {PAGE}")


if __name__ == "__main__":
    write()
