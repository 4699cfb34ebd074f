"""The watcher: applies all rules to a run after each step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from posttrain.runs.alerts import ERROR, WARNING, step_of_alert
from posttrain.runs.rules.registry import ActiveRule
from posttrain.runs.rules.rule import Finding, Line, RunView

#: Steps after which a lasting fault is reported again.
AGAIN = 100
#: Code of the alert for a rule that fails itself.
BROKEN = "rule-failed"


@dataclass(frozen=True)
class Raised:
    """An alert of one step: arguments of ``RunDirectory.alert``, and whether it ends the run."""

    code: str
    severity: str
    message: str
    evidence: dict[str, Any]
    suggestion: str
    stops: bool = False


@dataclass
class Watcher:
    """The rules of one run, and the step at which each last raised an alert."""

    rules: list[ActiveRule]
    plan: dict[str, Any] = field(default_factory=dict)
    """The content of run.json."""
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    """The card's ranges of metrics."""
    spoken: dict[str, int] = field(default_factory=dict)
    """Step of the last alert by code."""

    def remember(self, alerts: list[dict[str, Any]]) -> None:
        """Take over the alerts from before a run was resumed."""
        self.spoken |= {alert["code"]: step_of_alert(alert) for alert in alerts}

    def look(
        self, lines: list[Line], evaluations: list[Line] | None = None, details: dict[str, Any] | None = None
    ) -> list[Raised]:
        """Apply every rule to the newest of ``lines``; a lasting fault is reported once in 100 steps."""
        line = lines[-1]
        step = int(line["step"])
        view = RunView(lines, self.plan, evaluations or [], self.ranges, details or {})
        raised = []
        for active in list(self.rules):
            rule = active.rule
            if step % rule.every or (rule.code in self.spoken and step - self.spoken[rule.code] < AGAIN):
                continue
            if any(line.get(name) is None for name in rule.reads):
                continue
            view.limits = active.limits
            try:
                found = rule.check(view)
            except Exception as error:  # no rule, whatever its origin, may end a run by an error
                self.rules.remove(active)
                found, broken = Finding(f"rule {rule.code} failed and is off: {type(error).__name__}: {error}"), True
            else:
                broken = False
            if found is not None:
                raised.append(self._raised(active, found, step, broken))
        return raised

    def _raised(self, active: ActiveRule, found: Finding, step: int, broken: bool) -> Raised:
        code = BROKEN if broken else active.rule.code
        self.spoken[code] = step
        stops = active.stops and not broken
        evidence = {"step": step, **found.evidence}
        suggestion = f"--rules {active.rule.code}=off" if broken else found.suggestion
        return Raised(code, ERROR if stops else WARNING, found.message, evidence, suggestion, stops)


def replay(
    rules: list[ActiveRule],
    lines: list[Line],
    plan: dict[str, Any],
    evaluations: list[Line] | None = None,
    ranges: dict[str, tuple[float, float]] | None = None,
) -> list[Raised]:
    """Apply the rules to every step of a finished run, as its own watcher would have, in the order of the steps."""
    watcher = Watcher(list(rules), plan, ranges or {})
    found = []
    for place, line in enumerate(lines, 1):
        known = [one for one in evaluations or [] if one["step"] <= line["step"]]
        found += watcher.look(lines[:place], known)
    return found
