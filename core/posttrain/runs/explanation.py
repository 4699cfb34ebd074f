"""Explanation of a run: why it ended, what looks wrong, and what to change first, in words and as facts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from posttrain.runs.directory import RunDirectory
from posttrain.runs.rules.registry import active_rules
from posttrain.runs.rules.rule import mean
from posttrain.runs.rules.watcher import replay
from posttrain.runs.verdict import judge, ranked

#: Metrics whose change a summary reports, where a run has them; the rest are in metrics.jsonl.
SHOWN = (
    *("loss", "reward", "reward_std", "accuracy", "margin", "kl", "entropy", "completion_length"),
    *("grad_norm", "eval_loss", "eval_reward"),
)
#: Number of lines whose mean is the start, and the end, of a series.
ENDS = 5


def explain(path: str | Path) -> dict[str, Any]:
    """Explain the run in folder ``path``: ``ended``, ``wrong``, ``first``, ``moved``. Raises CheckpointError.

    Alerts are those in the run's events; the shipped rules check the whole run once more, so that a run trained without
    them, or by an earlier version, is explained alike.
    """
    verdict = judge(path)
    directory = RunDirectory(path, writes=False)
    lines, facts = directory.read_metrics(), directory.facts()
    evaluations = directory.evaluations(int(lines[-1]["step"])) if lines else []
    wrong = ranked([*_replayed(lines, facts, evaluations), *directory.alerts()])
    first = next((one["suggestion"] for one in wrong if one["suggestion"]), verdict.todo)
    return {
        "run": str(path),
        "method": verdict.method,
        "state": verdict.state,
        "step": verdict.step,
        "total": verdict.total,
        "ended": verdict.why,
        "wrong": [{name: one[name] for name in ("code", "severity", "message", "evidence", "suggestion")}
                  for one in wrong],
        "first": first,
        "moved": {name: moved for name in SHOWN if (moved := _moved(lines, evaluations, name))},
        "exit_code": verdict.exit_code,
    }  # fmt: skip


def _replayed(
    lines: list[dict[str, Any]], facts: dict[str, Any], evaluations: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    if not lines:
        return []
    ranges = {name: (low, high) for name, (low, high) in facts.get("card", {}).get("ranges", {}).items()}
    settings = facts.get("settings", {})
    rules = active_rules(None, settings.get("rule_options"))
    return [vars(one) for one in replay(rules, lines, facts, evaluations, ranges)]


def _moved(lines: list[dict[str, Any]], evaluations: list[dict[str, Any]], name: str) -> list[float] | None:
    """Return a metric's value at the start and at the end; None where it has fewer than two values.

    Of evaluations the first, which precedes the first step, and the last; of steps the mean of a few on either side,
    never of the same ones.
    """
    held_out = name.startswith("eval_")
    values = [line[name] for line in (evaluations if held_out else lines) if name in line]
    if len(values) < 2:
        return None
    count = 1 if held_out else min(ENDS, len(values) // 2)
    return [mean(values[:count]), mean(values[-count:])]


def in_words(found: dict[str, Any]) -> str:
    """Write an explanation for a person."""
    text = [f"{found['run']}: {found['method']}, step {found['step']} of {found['total']}, {found['state']}"]
    text.append(f"  {found['ended']}")
    if found["wrong"]:
        text += ["", "what looks wrong, first what is to be mended first:"]
        for one in found["wrong"]:
            step = one["evidence"].get("step") if isinstance(one["evidence"], dict) else None
            text.append(f"  [{one['code']}]{'' if step is None else f' at step {step}'}: {one['message']}")
            if one["suggestion"]:
                text.append(f"      {one['suggestion']}")
    if found["first"]:
        text += ["", f"change first: {found['first']}"]
    if found["moved"]:
        text += ["", "from the first steps to the last:"]
        text += [f"  {name:<18} {was:>10.4g} -> {now:.4g}" for name, (was, now) in found["moved"].items()]
    return "\n".join(text)
