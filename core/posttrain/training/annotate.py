"""Columns that a method computes from a whole step without gradient, for its loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from posttrain.contract.views import Example, Sequence
from posttrain.errors import PluginError
from posttrain.training.step import shared_logps

if TYPE_CHECKING:
    from posttrain.training.run import Compute


class Models:
    """The models of a run as ``posttrain_annotate`` sees them: log-probs of any sequences, computed by all ranks."""

    def __init__(self, compute: Compute):
        self.compute = compute

    def logps(self, sequences: list[Sequence], model: str = "policy") -> list[Tensor]:
        """Return log-probs ``(t,)`` of the trained tokens of each sequence under "policy", "reference" or "teacher"."""
        compute = self.compute
        if model not in ("policy", "reference", "teacher"):
            raise PluginError(
                f"'{compute.card.name}' asks for the model '{model}'. There are 'policy', 'reference' and 'teacher'."
            )
        return shared_logps(compute, sequences, model)


def annotate(compute: Compute, examples: list[Example]) -> None:
    """Add the method's columns to ``examples``, all of one global step."""
    if compute.method.has("posttrain_annotate"):
        with torch.no_grad():
            columns = compute.method.annotate(
                examples=examples, models=Models(compute), config=compute.config, state=compute.state
            )
        add_columns(examples, columns or {}, compute.card.name)


def add_columns(examples: list[Example], columns: dict[str, Any], method: str) -> None:
    """Add each column's values to the examples. Raises PluginError for a column of another length."""
    for name, values in columns.items():
        if len(values) != len(examples):
            raise PluginError(
                f"posttrain_annotate of '{method}' returned {len(values)} values for '{name}' with {len(examples)} "
                "examples. Expected a tensor (B,) or a list of B tensors."
            )
        role, dot, own = name.partition(".")
        for example, value in zip(examples, values, strict=True):
            if isinstance(values, Tensor):
                example.columns[name] = value.detach()
                continue
            first = example.sequences[role][0] if dot else next(iter(example.sequences.values()))[0]
            if value.shape != (first.count,):
                raise PluginError(
                    f"posttrain_annotate of '{method}' returned a tensor {tuple(value.shape)} for '{name}', expected "
                    f"({first.count},): one value a trained token."
                )
            first.per_token[f"{role}_{own}" if dot else name] = value.detach()
