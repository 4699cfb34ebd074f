"""Checks of a run after each step; what looks wrong is logged, reported, and may end the run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from posttrain.errors import RunStopped
from posttrain.runs.rules.registry import active_rules
from posttrain.runs.rules.watcher import Raised, Watcher

if TYPE_CHECKING:
    from pathlib import Path

    from posttrain.runs.directory import RunDirectory
    from posttrain.training.run import Plan, Run


def make_watcher(plan: Plan, directory: RunDirectory) -> Watcher:
    """Build the watcher of a run, with the alerts that a resumed run has already raised."""
    watch = plan.settings.watch
    watcher = Watcher(active_rules(watch.rules, watch.rule_options), ranges=plan.card.ranges)
    if directory.writes and (directory.path / "run.json").is_file():
        watcher.plan = directory.facts()
        watcher.remember(directory.alerts())
    return watcher


def look(run: Run, watcher: Watcher, details: dict[str, Any]) -> Raised | None:
    """Check the finished step; return the alert that ends the run, the same on every rank, or None."""
    raised: list[Raised] = []
    if run.outputs.directory.writes:
        raised = watcher.look(run.progress.history, run.progress.evaluations, details)
    for one in raised:
        tell(run, one)
    if not any(active.stops for active in watcher.rules):
        return None
    mine = next((one for one in raised if one.stops), None)
    return run.compute.strategy.everyone(mine)[0]


def tell(run: Run, raised: Raised) -> None:
    """Record an alert and pass it to the observers, including the progress output."""
    event = run.outputs.directory.alert(
        raised.code, raised.severity, raised.message, raised.evidence, raised.suggestion
    )
    run.outputs.observers.tell("alert", run=run, event=event)


def stop(path: Path, raised: Raised) -> None:
    """End a run whose checkpoint is written. Raises RunStopped."""
    raise RunStopped(
        f"The run stopped: [{raised.code}] {raised.message}. Try: {raised.suggestion}. It is saved; to go on all the "
        f"same: --rules {raised.code}=warn and posttrain resume {path}"
    )
