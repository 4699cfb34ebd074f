"""Non-finite weights: found before they are saved and after they are loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from posttrain.errors import RunStopped

if TYPE_CHECKING:
    from posttrain.training.run import Compute, Run

#: Tensors that a message lists.
NAMED = 3


def nonfinite_weights(compute: Compute) -> list[str]:
    """Name the trained tensors that hold NaN or infinity, on any rank; every rank gets the same list."""
    mine = [name for name, parameter in compute.policy.named_parameters() if not _is_finite(parameter)]
    everyone = [name for names in compute.strategy.everyone(mine) for name in names]
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


@torch.no_grad()
def _is_finite(parameter: nn.Parameter) -> bool:
    """Check this rank's part of one tensor. Frozen ones pass unchecked."""
    if not parameter.requires_grad or not (parameter.is_floating_point() or parameter.is_complex()):
        return True
    local = local_part(parameter)
    if not local.numel():
        return True
    return all(bool(value.isfinite()) for value in torch.aminmax(local))  # one pass, no copy; NaN goes through


def local_part(parameter: Any) -> Tensor:
    """Return this rank's part of a tensor: the shard of fully_shard or of ZeRO stage 3, or the whole tensor."""
    if hasattr(parameter, "to_local"):
        return parameter.detach().to_local()
    return getattr(parameter, "ds_tensor", parameter.detach())
