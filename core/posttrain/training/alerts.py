"""A run looks at itself after each step; what looks wrong is written down, said, and may end the run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from posttrain.errors import RunStopped
from posttrain.runs.rules.registry import active_rules
from posttrain.runs.rules.watcher import Raised, Watcher

if TYPE_CHECKING:
    from posttrain.training.run import Run


def make_watcher(run: Run) -> Watcher:
    """Build the watcher of a run, which knows what a run that is resumed has said before."""
    watch, directory = run.plan.settings.watch, run.outputs.directory
    watcher = Watcher(active_rules(watch.rules, watch.rule_options), ranges=run.plan.card.ranges)
    if directory.writes and (directory.path / "run.json").is_file():
        watcher.plan = directory.facts()
        watcher.remember(directory.alerts())
    return watcher


def look(run: Run, watcher: Watcher, details: dict[str, Any]) -> Raised | None:
    """Look at the step that is over; the alert that ends the run, on every rank alike, or None."""
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
    """Write an alert down and tell the observers, of which the progress is one."""
    event = run.outputs.directory.alert(
        raised.code, raised.severity, raised.message, raised.evidence, raised.suggestion
    )
    run.outputs.observers.tell("alert", run=run, event=event)


def stop(run: Run, raised: Raised) -> None:
    """End a run whose checkpoint is written. Raises RunStopped."""
    raise RunStopped(
        f"The run stopped: [{raised.code}] {raised.message}. Try: {raised.suggestion}. It is saved; to go on all the "
        f"same: --rules {raised.code}=warn and posttrain resume {run.path}"
    )
