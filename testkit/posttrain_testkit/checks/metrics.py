"""Loss checks of the metrics: detached, with a shape, under stable and documented names."""

from __future__ import annotations

import ast
import re
from typing import Any

import torch
from posttrain.contract.views import PerToken, Step
from torch import Tensor

from posttrain_testkit.bench import call
from posttrain_testkit.checks.loss import USUAL, cases, whole_batch
from posttrain_testkit.inputs import Shape
from posttrain_testkit.registry import CheckFailed, check
from posttrain_testkit.subject import Subject


@check("loss")
def check_metrics_are_detached(subject: Subject) -> None:
    """No metric has a graph: logged values must not keep a step's activations alive."""
    method = subject.method
    for text, config, inputs in cases(method):
        _, metrics = call(method, config, whole_batch(method, config, inputs))
        for name, metric in metrics.items():
            tensor = metric.values if isinstance(metric, PerToken) else metric
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                raise CheckFailed(
                    f"With {text}, the metric '{name}' requires a gradient.",
                    "Usual cause: a tensor of the loss returned as it is. Write .detach().",
                )


@check("loss")
def check_metrics_are_unreduced(subject: Subject) -> None:
    """Each metric is one value an example ``(B,)`` or PerToken ``(B, T)``, so that the core can average it."""
    method = subject.method
    for text, config, inputs in cases(method):
        micro = whole_batch(method, config, inputs)
        _, metrics = call(method, config, micro)
        for name, metric in metrics.items():
            if isinstance(metric, PerToken):
                good = metric.values.shape == metric.mask.shape and metric.values.dim() == 2
            else:
                good = isinstance(metric, Tensor) and metric.shape == (micro.batch.size,)
            if not good:
                raise CheckFailed(
                    f"With {text}, the metric '{name}' is {_described(metric)} for {micro.batch.size} examples.",
                    "Usual cause: .mean() or .item(): means of micro-batches are not the mean of the step.",
                )


@check("loss")
def check_metrics_have_stable_names(subject: Subject) -> None:
    """The names of metrics and loss terms do not depend on the data, only on the options."""
    method = subject.method
    shapes = [USUAL, Shape((2,), 3, "good"), Shape((2, 1), 4, "bad"), Shape((0, 2), 5), Shape((1, 1), 6, equal=True)]
    seen: dict[str, tuple[set[str], str]] = {}
    for shape in shapes:
        for training in (True, False):
            for text, config, inputs in cases(method, shape):
                step = Step(0 if training else 7, 10, training)
                terms, metrics = call(method, config, whole_batch(method, config, inputs), step)
                names = {*metrics, *(f"term {term}" for term in terms)}
                what = f"{len(shape.lengths)} examples ({shape.labels}, {'training' if training else 'evaluation'})"
                first, where = seen.setdefault(text, (names, what))
                if names != first:
                    odd = ", ".join(sorted(names ^ first))
                    raise CheckFailed(
                        f"With {text}, the names differ between {where} and {what}: {odd}.",
                        "Usual cause: a metric inside an if. Return it always, with NaN where it does not apply.",
                    )


@check("loss")
def check_metrics_are_documented(subject: Subject) -> None:
    """Each metric is explained in the module's docstring."""
    method = subject.method
    text = ast.get_docstring(ast.parse((subject.package / "__init__.py").read_text(encoding="utf-8"))) or ""
    section = text[max(text.lower().find("metrics:"), 0) :]
    for _, config, inputs in cases(method):
        for name in call(method, config, whole_batch(method, config, inputs))[1]:
            if not re.search(rf"\b{re.escape(name)}\b", section):
                raise CheckFailed(
                    f"The metric '{name}' is not in the section 'Metrics:' of the module's docstring.",
                    "Usual cause: a metric added later. Say under 'Metrics:' what it means and where it should lie.",
                )


def _described(metric: Any) -> str:
    if isinstance(metric, PerToken):
        return f"PerToken of {tuple(metric.values.shape)} and {tuple(metric.mask.shape)}"
    return (
        f"a tensor of shape {tuple(metric.shape)}" if isinstance(metric, torch.Tensor) else f"a {type(metric).__name__}"
    )
