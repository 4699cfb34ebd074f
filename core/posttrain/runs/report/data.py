"""Data of a report's page, as JSON."""

from __future__ import annotations

from typing import Any

from posttrain.runs.metrics import format_value, is_number, metric_notes
from posttrain.runs.reading import RunReader
from posttrain.runs.report.completions import BYTES, chosen_completions, readable
from posttrain.runs.report.differences import differences, flat_configuration
from posttrain.runs.report.series import POINTS, charts, curves

#: Kinds of events that the time line shows beside alerts.
_SHOWN = {"started", "evaluation", "checkpoint", "interrupted", "finished", "failed", "stopped"}
#: Most events and alerts of one run; the newest are kept.
_EVENTS = 400


def report_data(runs: list[RunReader]) -> dict[str, Any]:
    """Return the data of a page about ``runs``: their facts and curves, charts, alerts, completions, differences."""
    shown = [_run(run, names, len(runs)) for run, names in zip(runs, _names(runs), strict=True)]
    metrics = dict.fromkeys(name for run in shown for name in run["curves"])
    notes: dict[str, str] = {}
    for method in {str(run.facts.get("method", "")) for run in runs}:
        notes |= metric_notes(method)
    configurations = [flat_configuration(run.facts) for run in runs]
    rows = [[row[0], *map(readable, row[1:])] for row in differences(configurations)] if len(runs) > 1 else []
    options = [[name, readable(value)] for name, value in configurations[0].items()] if len(runs) == 1 else []
    return {
        "runs": shown,
        "charts": charts(metrics, notes, several=len(runs) > 1),
        "differences": rows,
        "options": options,
    }


def _names(runs: list[RunReader]) -> list[str]:
    """Return folder names; full paths where two runs have the same name."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.path) for run in runs]


def _run(run: RunReader, name: str, runs: int) -> dict[str, Any]:
    return {
        "name": name,
        "state": run.state(),
        "facts": _facts(run),
        "curves": curves([*_first_evaluation(run), *run.metrics], POINTS // runs),
        "alerts": [_event(event) for event in run.alerts[-_EVENTS:]],
        "events": [_event(event) for event in run.events if event.get("code") in _SHOWN][-_EVENTS:],
        "prompts": chosen_completions(run.samples, BYTES // runs),
    }


def _first_evaluation(run: RunReader) -> list[dict[str, Any]]:
    """Return the evaluation before the first step, which is not in metrics.jsonl."""
    found = [event["evidence"] for event in run.events if event.get("code") == "evaluation"]
    return [facts for facts in found if isinstance(facts, dict) and facts.get("step") == 0][-1:]


def _facts(run: RunReader) -> list[list[str]]:
    settings, last, facts = run.facts.get("settings") or {}, run.last, run.facts
    card, tokens = facts.get("card") or {}, sum(line.get("tokens") or 0 for line in run.metrics)
    rows = [
        ["method", " ".join(str(card[key]) for key in ("name", "version") if card.get(key))],
        ["model", str(settings.get("model") or "given as an object")],
        ["data", readable(settings.get("data")) if settings.get("data") else "given as objects"],
        ["step", f"{run.step} of {run.total}"],
        ["started", run.started()],
        ["time of the steps", _clock(run.seconds())],
        ["tokens trained", format_value(tokens)],
    ]
    for name in ("loss", "reward", "eval_loss", "eval_reward"):
        known = [line[name] for line in [*_first_evaluation(run), *run.metrics] if is_number(line.get(name))]
        if known:
            rows.append([f"{name.replace('_', ' ')}, first to last", f"{known[0]:.4g} to {known[-1]:.4g}"])
    ends = [event["message"] for event in run.events if event.get("code") in ("failed", "stopped", "interrupted")]
    if ends and run.state() in ("failed", "stopped", "interrupted"):
        rows.append(["how it ended", ends[-1]])
    if last.get("peak_memory_mb"):
        rows.append(["peak memory", f"{last['peak_memory_mb'] / 1024:.2f} GiB"])
    return rows


def _event(event: dict[str, Any]) -> dict[str, Any]:
    evidence = event.get("evidence")
    step = evidence.get("step") if isinstance(evidence, dict) else None
    rest = {name: value for name, value in evidence.items() if name != "step"} if isinstance(evidence, dict) else {}
    kept = {name: event.get(name) or "" for name in ("code", "severity", "message", "suggestion", "time")}
    return kept | {"step": step, "evidence": ", ".join(f"{name} {readable(v)}" for name, v in list(rest.items())[:8])}


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"
