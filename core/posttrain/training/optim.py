"""Optimisers: torch's own, and every name of transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from posttrain.errors import DependencyError, SettingsError, first_line
from posttrain.training.parameter_groups import parameter_groups

if TYPE_CHECKING:
    from posttrain.settings import OptimSettings

#: Common names -> transformers' name.
ALIASES = {"adafactor": "adafactor", "lion": "lion_32bit", "adagrad": "adagrad", "rmsprop": "rmsprop", "sgd": "sgd"}


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
