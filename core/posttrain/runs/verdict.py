"""Verdict on a run, from its folder alone: its state, the reason, and what to do."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from posttrain.runs.alerts import step_of_alert
from posttrain.runs.directory import RunDirectory
from posttrain.runs.owner import find_owner
from posttrain.runs.rules.registry import order_of_causes

HEALTHY, SUSPICIOUS, FAILED, FINISHED, INTERRUPTED = "healthy", "suspicious", "failed", "finished", "interrupted"
#: Exit code of ``posttrain status`` by state: 1 as for a failed run, 3 as for one that an alert has stopped.
EXIT_CODES = {HEALTHY: 0, FINISHED: 0, INTERRUPTED: 0, FAILED: 1, SUSPICIOUS: 3}
#: An alert older than this many steps, and not repeated, no longer makes a run suspicious.
FRESH = 100
#: A run without a new line for this many of its usual steps, and seconds, hangs.
SLOW, PATIENCE = 20, 300.0


@dataclass
class Verdict:
    """State of a run, with the reason and the remedy."""

    run: str
    state: str
    """healthy, suspicious, failed, finished, or interrupted (saved, and to be resumed)."""
    why: str
    todo: str
    """What to do first; empty where nothing is to be done."""
    running: bool | None
    """Whether its process lives; None where this machine cannot tell."""
    step: int
    total: int
    method: str
    alerts: list[dict[str, Any]] = field(default_factory=list)
    """Alerts that count, in the order in which to fix them."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """The newest line of metrics.jsonl."""

    @property
    def exit_code(self) -> int:
        """Exit code of ``posttrain status``."""
        return EXIT_CODES[self.state]

    def facts(self) -> dict[str, Any]:
        """Return the verdict as JSON."""
        return asdict(self) | {"exit_code": self.exit_code}


def judge(path: str | Path) -> Verdict:
    """Judge the run in folder ``path``. Raises CheckpointError where there is none."""
    directory = RunDirectory(path, writes=False)
    facts, lines, events = directory.facts(), directory.read_metrics(), directory.events()
    owner = find_owner(directory.path)
    running = False if owner is None else owner.alive
    last: dict[str, Any] = next((event for event in reversed(events) if event["code"] in _ENDS), {})
    step, total = int(lines[-1]["step"]) if lines else 0, int(facts.get("total_steps") or 0)
    alerts = ranked([alert for alert in directory.alerts() if step - step_of_alert(alert) < FRESH])
    name = (facts.get("card") or {}).get("name", facts.get("method", ""))
    verdict = Verdict(str(path), HEALTHY, "", "", running, step, total, name, alerts, lines[-1] if lines else {})
    _decide(verdict, last, lines, directory.path)
    return verdict


#: Events that mark the start of a run, or how it ended.
_ENDS = ("started", "finished", "failed", "stopped", "interrupted")


def _decide(verdict: Verdict, last: dict[str, Any], lines: list[dict[str, Any]], path: Path) -> None:
    code = last.get("code", "")
    resume = f"posttrain resume {path}"
    alert = verdict.alerts[0] if verdict.alerts else None
    if code == "finished":
        verdict.state, verdict.why = FINISHED, f"all {verdict.step} steps are done and the model is saved"
        if alert:
            verdict.why += f"; while it ran: {alert['message']}"
            verdict.todo = alert["suggestion"]
    elif code == "failed":
        verdict.state, verdict.why = FAILED, last["message"]
        verdict.todo = alert["suggestion"] if alert and alert["severity"] == "error" else f"mend it, then: {resume}"
    elif code == "stopped":
        verdict.state, verdict.why = FAILED, alert["message"] if alert else last["message"]
        verdict.todo = alert["suggestion"] if alert else resume
    elif code == "interrupted":
        verdict.state, verdict.why, verdict.todo = INTERRUPTED, last["message"], resume
    elif verdict.running is False:
        verdict.state, verdict.todo = FAILED, resume
        verdict.why = f"its process is gone and left no word after step {verdict.step}: killed, or out of memory"
    elif _hangs(lines, path):
        verdict.state, verdict.todo = SUSPICIOUS, f"look at its processes; posttrain stop {path}"
        verdict.why = f"no step has ended for {_age(path):.0f} s, where they took {_pace(lines):.2g} s"
    elif alert:
        verdict.state, verdict.why, verdict.todo = SUSPICIOUS, alert["message"], alert["suggestion"]
    else:
        where = "the first step is under way" if not verdict.step else f"step {verdict.step} of {verdict.total}"
        verdict.why = f"{where}, nothing looks wrong"


def ranked(alerts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Order alerts by what to fix first, with the newest of each code alone."""
    newest = {alert["code"]: alert for alert in alerts}
    order = order_of_causes()
    return sorted(
        newest.values(),
        key=lambda a: (a["severity"] != "error", order.index(a["code"]) if a["code"] in order else len(order)),
    )


def _pace(lines: list[dict[str, Any]]) -> float:
    return sum(line["seconds"] for line in lines[-SLOW:]) / max(1, len(lines[-SLOW:]))


def _age(path: Path) -> float:
    return time.time() - (path / "metrics.jsonl").stat().st_mtime


def _hangs(lines: list[dict[str, Any]], path: Path) -> bool:
    return bool(lines) and _age(path) > max(PATIENCE, SLOW * _pace(lines))
