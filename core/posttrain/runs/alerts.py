"""Alerts: lines of ``events.jsonl`` that report what looks wrong in a run, from which numbers, and what to change.

A line of kind "alert" has ``code`` (the rule's name), ``severity`` ("warning", or "error" where it ends the run),
``message`` (one sentence), ``evidence`` (``step`` and the numbers behind the sentence) and ``suggestion`` (what to
change first, a flag to paste where one helps).
"""

from __future__ import annotations

from typing import Any

WARNING, ERROR = "warning", "error"


def current_alerts(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the alerts among events, oldest first, without those of steps that a resumed run repeats."""
    found: list[dict[str, Any]] = []
    for event in events:
        evidence = event.get("evidence")
        if event.get("code") == "started" and isinstance(evidence, dict):
            found = [alert for alert in found if step_of_alert(alert) <= evidence.get("step", 0)]
        elif event.get("kind") == "alert":
            found.append(event)
    return found


def step_of_alert(event: dict[str, Any]) -> int:
    """Return the step in which an alert was raised."""
    evidence = event.get("evidence")
    return int(evidence.get("step", 0)) if isinstance(evidence, dict) else 0
