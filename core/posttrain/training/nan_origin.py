"""Origin of a non-finite number: the first module, its micro-batch, and its rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from posttrain.contract.views import Example, Step
from posttrain.errors import RunStopped
from posttrain.models.finite import local_part, nonfinite
from posttrain.training.finite import NAMED
from posttrain.training.step import evaluate_loss

if TYPE_CHECKING:
    from posttrain.training.run import Compute, Run


#: Metric of a skipped step.
SKIPPED = "step_skipped"


def skip_or_refuse(run: Run, examples: list[Example], line: dict[str, Any]) -> None:
    """Report the origin of a non-finite number; skip the step, or end the run once --skip-nonfinite is used up.

    Either way the weights stay those of the step before (S13). ``examples`` are this rank's part of the step. Raises
    RunStopped.
    """
    bad = [name for name in ("loss", "grad_norm") if not math.isfinite(line[name])]
    message = f"{bad[0]} is {line[bad[0]]} at step {run.progress.step}; the step was not applied"
    evidence: dict[str, Any] = {"step": run.progress.step, **{name: str(line[name]) for name in bad}}
    found = (
        {}
        if run.compute.strategy.shards_forward
        else find_origin(run.compute, examples, Step(run.progress.step - 1, run.progress.total))
    )
    if found:
        evidence |= found
        message += f". It began in {found['origin']}"
        if found.get("rows"):
            message += f", for row {found['rows'][0] + 1} of the step's {len(examples)}"
    suggestion = "lower --learning-rate, or look at the step's rows with posttrain check-data --show"
    limit = run.plan.settings.optim.skip_nonfinite
    before = sum(SKIPPED in one for one in run.progress.history)
    spoilt = run.compute.strategy.everyone("weights" in found)  # no later step would be better
    skips = before < limit and not any(spoilt)
    if skips:
        line[SKIPPED] = 1.0
        message += f"; skipped, {before + 1} of the {limit} that --skip-nonfinite allows"
    else:
        run.outputs.directory.metrics(line)
    severity = "warning" if skips else "error"
    event = run.outputs.directory.alert("nan-origin", severity, message, evidence, suggestion)
    run.outputs.observers.tell("alert", run=run, event=event)
    if not skips:
        raise RunStopped(f"The run stopped: {message}. {suggestion[0].upper() + suggestion[1:]}.")


def find_origin(compute: Compute, examples: list[Example], step: Step) -> dict[str, Any]:
    """Find the first non-finite number: in weights, in a module's output, in the loss, in gradients.

    ``origin`` is a phrase; ``module``, ``micro_batch`` (from 1), ``rows`` (indices in the step), ``tensors`` and
    ``weights`` (True if they are not finite) are present where known. Runs the micro-batches again, without gradient.
    Empty if all are finite now.
    """
    weights = nonfinite(compute.policy)
    if weights:
        names = [_name(name) for name in weights]
        return {"origin": f"the weights of {names[0]}", "tensors": names, "weights": True}
    places = {id(example): place for place, example in enumerate(examples)}
    for number, micro in enumerate(compute.micro_batches(examples), 1):
        first: list[str] = []
        with _watching(compute.policy, first):
            loss = _loss(compute, micro, step)
        if first or not math.isfinite(loss):
            rows = [places[id(one)] for one in micro if not math.isfinite(_loss(compute, [one], step))]
            origin = f"the output of module {_name(first[0])}" if first else "the loss of the method"
            found = {"origin": f"{origin} in micro-batch {number}", "micro_batch": number, "rows": rows}
            return found | ({"module": _name(first[0])} if first else {})
    named = compute.policy.named_parameters()
    gradients = [n for n, p in named if p.grad is not None and not bool(local_part(p.grad).isfinite().all())]
    if gradients:
        names = [_name(name) for name in gradients]
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        return {"origin": f"the gradient of {', '.join(names[:NAMED])}{more}", "tensors": names}
    return {}


def _loss(compute: Compute, examples: list[Example], step: Step) -> float:
    return evaluate_loss(compute, examples, step).loss


@contextmanager
def _watching(model: nn.Module, first: list[str]) -> Iterator[None]:
    """Collect the first leaf module whose output is not finite, while a block runs the model."""

    def look(name: str, output: Any) -> None:
        tensors = output if isinstance(output, list | tuple) else [output]
        bad = (isinstance(t, Tensor) and t.is_floating_point() and not bool(t.isfinite().all()) for t in tensors)
        if not first and any(bad):
            first.append(name)

    def hook(name: str) -> Any:
        return lambda module, inputs, output: look(name, output)

    handles = [
        module.register_forward_hook(hook(name))
        for name, module in model.named_modules()
        if name and not next(module.children(), None)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _name(name: str) -> str:
    return name.removeprefix("model.")  # as in the model's files
