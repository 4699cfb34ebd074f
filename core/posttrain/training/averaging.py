"""The end of a run whose model is an average of weights: of all its steps, or of its last checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from posttrain.models.average import WeightAverage
from posttrain.runs.directory import is_checkpoint, step_of

if TYPE_CHECKING:
    from pathlib import Path

    from posttrain.training.run import Run


def put_average(run: Run) -> None:
    """Put the average that the run was asked for into the policy, evaluate it, and say both; else do nothing."""
    count = run.plan.settings.optim.average_last
    average = run.compute.average
    if count is not None:
        folders = scheduled(run)[-count:]
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
    found = {} if run.evaluation is None else {f"eval_{n}": value for n, value in run.evaluation(run).items()}
    message = f"the weights are {what}"
    run.outputs.directory.event(
        "weights-averaged", "info", message, evidence={"step": run.progress.step, "averaged": average.count, **found}
    )
    values = "".join(f"  {name} {value:.4f}" for name, value in list(found.items())[:3])
    run.outputs.say(message + values)


def scheduled(run: Run) -> list[Path]:
    """Checkpoints that ``save_every`` made, and the one of the end, oldest first: those that are averaged."""
    every = run.plan.settings.watch.save_every
    found = [path for path in run.outputs.directory.checkpoints.glob("step-*") if is_checkpoint(path)]
    last = run.progress.step
    chosen = [
        path for path in found if step_of(path) > 0 and (step_of(path) == last or step_of(path) % (every or 1) == 0)
    ]
    return sorted(chosen, key=step_of)
