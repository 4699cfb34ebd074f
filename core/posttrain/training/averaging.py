"""Averaged weights as a run's final model: of all its steps, or of its last checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from posttrain.models.average import WeightAverage
from posttrain.runs.directory import RunDirectory, is_checkpoint, step_of

if TYPE_CHECKING:
    from pathlib import Path

    from posttrain.training.run import Run


def put_average(run: Run) -> None:
    """Load the requested average into the policy, evaluate it and report both; without one do nothing."""
    count = run.plan.settings.optim.average_last
    average = run.compute.average
    if count is not None:
        folders = scheduled(run.outputs.directory, run.plan.settings.watch.save_every, run.progress.step)[-count:]
        average = WeightAverage(run.compute.policy)
        for folder in folders:
            run.compute.strategy.load(run.compute, folder)
            average.add()
        what = f"the mean of {len(folders)} checkpoints: {', '.join(folder.name for folder in folders)}"
    elif average is not None and average.count:
        what = f"the moving average of {average.count} steps, decay {average.decay:g}"
    else:
        return
    average.put()
    found = (
        {}
        if run.evaluation is None
        else {f"eval_{n}": value for n, value in run.evaluation(run.compute, run.progress).items()}
    )
    message = f"the weights are {what}"
    run.outputs.directory.event(
        "weights-averaged", "info", message, evidence={"step": run.progress.step, "averaged": average.count, **found}
    )
    values = "".join(f"  {name} {value:.4f}" for name, value in list(found.items())[:3])
    run.outputs.say(message + values)


def scheduled(directory: RunDirectory, every: int | None, last: int) -> list[Path]:
    """List the checkpoints to average, oldest first: those of every ``every`` steps and of step ``last``."""
    found = [path for path in directory.checkpoints.glob("step-*") if is_checkpoint(path)]
    chosen = [
        path for path in found if step_of(path) > 0 and (step_of(path) == last or step_of(path) % (every or 1) == 0)
    ]
    return sorted(chosen, key=step_of)
