"""Rows of very unlike lengths: padded batches in the order of the data against posttrain's own micro-batches.

    python -m benchmarks.bench.lengths MODEL REPEATS RESULT.json

Lengths are drawn from a log-normal distribution, as those of chats are. Both ways take the same optimiser steps with
the same head; what differs is how rows are put together.
"""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path
from typing import Any

from benchmarks.bench.figures import spread
from benchmarks.bench.prefix import load, timed, update

ROWS, BATCH = 32, 8
MEDIAN, SIGMA, LONGEST = 96, 1.0, 768
CLAIMED = 1.8


def lengths() -> list[int]:
    """Tokens of each row, in the order of the data."""
    source = random.Random(0)
    return [max(2, min(LONGEST, round(source.lognormvariate(math.log(MEDIAN), SIGMA)))) for _ in range(ROWS)]


def main(model: str, repeats: int, result: str) -> None:
    """Measure both ways in turn and write them down."""
    policy = load(model)
    from posttrain.training.micro_batches import token_budget

    rows, budget = _examples(policy), token_budget(None, policy.device, groups=False)
    steps = [rows[start : start + BATCH] for start in range(0, ROWS, BATCH)]
    tokens = sum(lengths())
    packed = policy.packed
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(repeats + 1):  # the first round warms up
        for ours in (False, True):
            policy.packed = ours and packed
            size = None if ours else BATCH
            taken = timed(lambda: [update(policy, step, budget, size) for step in steps])  # noqa: B023  (called at once)
            if turn:
                seconds[ours].append(taken)
    plain, better = spread(seconds[False]), spread(seconds[True])
    found = {
        "name": f"{ROWS} rows of log-normal lengths, batches of {BATCH}",
        "before": "padded in order",
        "after": "token budget, packed",
        "seconds": [plain, better],
        "tokens_per_second": [tokens / plain["median"], tokens / better["median"]],
        "padding_share": 1 - tokens / sum(BATCH * max(len(e.sequences["completion"][0]) for e in s) for s in steps),
        "ratio": plain["median"] / better["median"],
        "claimed": CLAIMED,
    }
    Path(result).write_text(json.dumps([found]), encoding="utf-8")


def _examples(policy: Any) -> list[Any]:
    import torch
    from posttrain.contract.views import Example, Sequence

    torch.manual_seed(0)
    vocabulary = policy.inner.config.vocab_size
    rows = [torch.randint(0, vocabulary, (length,)) for length in lengths()]
    return [Example({"completion": [Sequence(ids, torch.arange(len(ids)) > 0)]}) for ids in rows]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
