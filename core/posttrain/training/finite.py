"""Non-finite weights: found before they are saved and after they are loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from posttrain.errors import RunStopped
from posttrain.models.finite import nonfinite

if TYPE_CHECKING:
    from posttrain.training.run import Compute, Run

#: Tensors that a message lists.
NAMED = 3


def nonfinite_weights(compute: Compute) -> list[str]:
    """Name the trained tensors that hold NaN or infinity, on any rank; every rank gets the same list."""
    everyone = [name for names in compute.strategy.everyone(nonfinite(compute.policy, trained=True)) for name in names]
    return list(dict.fromkeys(name.removeprefix("model.") for name in everyone))  # as in the files of the model


def refuse_nonfinite(run: Run) -> None:
    """Raise RunStopped if a trained weight is not finite: nothing of such a model is saved."""
    bad = nonfinite_weights(run.compute)
    if not bad:
        return
    more = f" and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
    message = (
        f"{len(bad)} trained tensors are not finite after step {run.progress.step}: {', '.join(bad[:NAMED])}{more}; "
        "they were not saved"
    )
    good = run.outputs.directory.newest_checkpoint()
    place = f"The last good checkpoint is '{good}'" if good else "There is no checkpoint before it (see --save-every)"
    suggestion = "lower --learning-rate or --weight-decay"
    evidence = {"step": run.progress.step, "tensors": bad, "last_good": good and good.name}
    event = run.outputs.directory.alert("nonfinite-weights", "error", message, evidence, suggestion)
    run.outputs.observers.tell("alert", run=run, event=event)
    raise RunStopped(f"The run stopped: {message}. {place}. {suggestion[0].upper() + suggestion[1:]}.")
