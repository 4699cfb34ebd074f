"""Optimisers: torch's own, and every name of transformers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from posttrain.errors import DependencyError, SettingsError, first_line
from posttrain.models.finite import local_part
from posttrain.training.parameter_groups import parameter_groups

if TYPE_CHECKING:
    from posttrain.settings import OptimSettings

#: Common names -> transformers' name.
ALIASES = {"adafactor": "adafactor", "lion": "lion_32bit", "adagrad": "adagrad", "rmsprop": "rmsprop", "sgd": "sgd"}
#: Share of the trained bfloat16 numbers that may be too large for an update.
MOST_LOST = 0.5


def build_optimizer(model: nn.Module, settings: OptimSettings) -> torch.optim.Optimizer:
    """Build an optimiser over the trained parameters, in groups (see ``parameter_groups``)."""
    groups = parameter_groups(model, settings)
    rate = settings.learning_rate
    assert rate is not None
    betas = (settings.adam_beta1, settings.adam_beta2)
    if settings.optimizer == "adamw":
        # fused: the same arithmetic in one kernel; not for float64 and other devices
        fused = all(
            p.dtype != torch.float64 and p.device.type in ("cpu", "cuda", "mps") for g in groups for p in g["params"]
        )
        return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=settings.adam_epsilon, fused=fused)
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate)
    return _from_transformers(model, groups, settings)


def _from_transformers(model: Any, groups: list[dict[str, Any]], settings: OptimSettings) -> torch.optim.Optimizer:
    import tempfile

    from transformers import Trainer, TrainingArguments
    from transformers.training_args import OptimizerNames

    name = ALIASES.get(settings.optimizer, settings.optimizer)
    names = sorted(o.value for o in OptimizerNames)
    if name not in names:
        import difflib

        close = difflib.get_close_matches(name, ["adamw", *ALIASES, *names], n=1)
        hint = f" Did you mean '{close[0]}'?" if close else f" Known: adamw, {', '.join(ALIASES)}, {', '.join(names)}."
        raise SettingsError(f"No optimizer is called '{settings.optimizer}'.{hint}")
    arguments = TrainingArguments(
        output_dir=tempfile.gettempdir(),
        optim=name,
        learning_rate=settings.learning_rate,
        adam_beta1=settings.adam_beta1,
        adam_beta2=settings.adam_beta2,
        adam_epsilon=settings.adam_epsilon,
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
    )
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    except (ImportError, ValueError) as error:
        raise DependencyError(f"Optimizer '{settings.optimizer}' cannot be used here: {first_line(error)}") from None
    return kind(groups, **options)


def reserve_moments(optimizer: torch.optim.Optimizer) -> None:
    """Allocate Adam's moments on a CPU before the first activations, for the reason in ``gradient_buffers``."""
    if type(optimizer) is not torch.optim.AdamW or optimizer.state:
        return
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        if parameter.device.type == "cpu":
            moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": torch.zeros((), dtype=torch.float32), **moments}


@torch.no_grad()
def rounding_notes(optimizer: Any, settings: OptimSettings) -> list[str]:
    """Return a line where most trained bfloat16 numbers are too large for an update of the learning rate's size.

    An update of Adam or Lion is about as large as the learning rate, whatever the gradient. bfloat16 has 128 steps
    from a power of two to the next, and an update of less than half a step is rounded away, each time anew.
    """
    if not any(name in settings.optimizer for name in ("adam", "lion")):
        return []
    lost, total, highest = 0, 0, 0.0
    for group in optimizer.param_groups:
        rate = float(group.get("initial_lr", group["lr"]))
        if not rate:
            continue
        # half a step at this power of two is the first that exceeds the rate
        bound = 2.0 ** (math.floor(math.log2(256 * rate)) + 1)
        for parameter in group["params"]:
            if parameter.dtype == torch.bfloat16:
                part = local_part(parameter)
                lost, total, highest = lost + int((part.abs() >= bound).sum()), total + part.numel(), max(highest, rate)
    if lost <= MOST_LOST * total:
        return []
    return [
        f"bfloat16 rounds an update of the size of the learning rate {highest:g} away in {lost / total:.0%} of the "
        "trained numbers. Weights that move: --dtype float32 (with --autocast as fast), --lora, or a higher "
        "--learning-rate"
    ]
