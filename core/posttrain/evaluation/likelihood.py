"""Likelihood of given texts under a model: perplexity, and accuracy on preference pairs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import Tensor

from posttrain.contract.views import Example, Sequence
from posttrain.evaluation.result import SetResult
from posttrain.evaluation.statistics import Interval, mean_interval
from posttrain.network.chunked_head import TokenQuery
from posttrain.training.step import shared_logps

if TYPE_CHECKING:
    from posttrain.evaluation.opened import Opened
    from posttrain.training.run import Compute


def measure_texts(opened: Opened) -> SetResult:
    """Measure the loss of each row's trained tokens in nats, their perplexity, and the rows' own means."""
    rows = _sequences(opened.data.train, "completion")
    logps = shared_logps(opened.run.compute, rows, "policy")
    sums = [-float(one.double().sum()) for one in logps]
    counts = [len(one) for one in logps]
    result = SetResult("texts", len(rows))
    kept = [place for place, count in enumerate(counts) if count]
    if len(kept) < len(rows):
        result.notes.append(
            f"{len(rows) - len(kept)} of {len(rows)} rows have no token that is learnt, and count for nothing"
        )
    sums, counts = [sums[i] for i in kept], [counts[i] for i in kept]
    loss = sum(sums) / sum(counts)
    around = _of_ratio(sums, counts, loss)
    result.figures["loss"] = around
    result.figures["perplexity"] = Interval(*(math.exp(value) for value in (around.mean, around.low, around.high)))
    result.values["loss"] = [value / count for value, count in zip(sums, counts, strict=True)]
    result.lines = [
        {"row": i, "tokens": count, "loss": value / count} for i, value, count in zip(kept, sums, counts, strict=True)
    ]
    result.notes.append(f"{sum(counts)} tokens")
    return result


def _of_ratio(sums: list[float], counts: list[int], ratio: float) -> Interval:
    """Return the interval of a ratio of sums over rows, from its linearisation (Cochran 1977, 6.4)."""
    usual = sum(counts) / len(counts)
    spread = mean_interval([ratio + (s - ratio * n) / usual for s, n in zip(sums, counts, strict=True)])
    return Interval(ratio, spread.low, spread.high)


def measure_preferences(opened: Opened, scored: bool) -> SetResult:
    """Measure how often the chosen answer ranks higher: by its log-prob, or by a reward model's score.

    The first of these figures sums over tokens, which favours short answers; ``accuracy_per_token`` takes their mean.
    """
    compute, rows = opened.run.compute, opened.data.train
    sides = [_sequences(rows, role) for role in ("chosen", "rejected")]
    result = SetResult("preferences", len(rows))
    if scored:
        values = [[float(one) for one in _scores(compute, side)] for side in sides]
        _add(result, "accuracy", "margin", values)
        return result
    logps = [shared_logps(compute, side, "policy") for side in sides]
    _add(result, "accuracy", "margin", [[float(one.double().sum()) for one in side] for side in logps])
    means = [[float(one.double().mean()) if len(one) else 0.0 for one in side] for side in logps]
    _add(result, "accuracy_per_token", "margin_per_token", means)
    return result


def _add(result: SetResult, accuracy: str, margin: str, values: list[list[float]]) -> None:
    pairs = list(zip(*values, strict=True))
    result.add(accuracy, [0.5 if a == b else float(a > b) for a, b in pairs], share=True)
    result.add(margin, [a - b for a, b in pairs])
    lines: list[dict[str, Any]] = result.lines or [{"row": i} for i in range(len(pairs))]
    for line, (a, b) in zip(lines, pairs, strict=True):
        line[margin] = a - b
    result.lines = lines


def _sequences(rows: Any, role: str) -> list[Sequence]:
    return [rows[i].sequences[role][0] for i in range(len(rows))]


def _scores(compute: Compute, sequences: list[Sequence]) -> list[Tensor]:
    """Return a reward model's score of each text."""
    examples = [Example({"completion": [sequence]}) for sequence in sequences]
    found: dict[int, Tensor] = {}
    for micro, _ in compute.iter_micro_batches(examples):
        with compute.autocast():
            results = compute.policy([one.sequences["completion"][0] for one in micro], TokenQuery(compute.head_chunk))
        found |= {id(example): score for example, score in zip(micro, results["score"].cpu(), strict=True)}
    return [found[id(example)] for example in examples]
