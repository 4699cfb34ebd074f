"""Columns that a method computes from a whole step, for a golden entry: rows as examples, log-probs as models."""

from __future__ import annotations

from typing import Any

import torch
from posttrain.catalogue.methods import Method
from posttrain.contract.views import Example, Sequence
from posttrain.data.reshape import NUMBER
from posttrain.training.annotate import add_columns
from posttrain.training.micro_batches import build_batch
from torch import Tensor

from posttrain_testkit.goldens.inputs import Inputs


def chosen_rows(method: Method, config: Any, raw: dict[str, Any]) -> dict[str, Any]:
    """Return the inputs of the rows of an entry that ``posttrain_rows`` keeps; all of them without the hook.

    The rows have the entry's columns, those whose lists have one value a row, and prompts that ``prompt_id``
    distinguishes.
    """
    tokens = next((value for name, value in raw.items() if "tok" in name.split("_")), None)
    if not method.has("posttrain_rows") or method.card.roles:
        return raw  # of roles the file has the tokens, not the samples
    if not isinstance(tokens, list) or not isinstance(tokens[0], list):
        return raw
    count = len(tokens)
    listed = {name: value for name, value in raw.items() if isinstance(value, list) and len(value) == count}
    prompts = raw.get("prompt_id", range(count))
    rows = [
        {name: value[place] for name, value in listed.items()}
        | {"prompt": f"prompt {prompts[place]}", "completion": f"answer {place}", NUMBER: place}
        for place in range(count)
    ]
    kept = [row[NUMBER] for row in method.rows(rows=rows, config=config)]
    return raw | {name: [value[place] for place in kept] for name, value in listed.items()}


class NotInTheFile(LookupError):
    """The hook needs log-probs of a sequence that is not in the file; the file states the column instead."""


class _Models:
    def __init__(self) -> None:
        self.known: dict[int, dict[str, Tensor]] = {}

    def logps(self, sequences: list[Sequence], model: str = "policy") -> list[Tensor]:
        """Return log-probs ``(t,)`` from the file."""
        try:
            return [self.known[id(sequence)][model].detach() for sequence in sequences]
        except KeyError:
            raise NotInTheFile from None


def annotated_columns(method: Method, config: Any, inputs: Inputs, columns: dict[str, Any]) -> dict[str, Any]:
    """Return the columns of ``posttrain_annotate`` for the entry's rows; empty without the hook.

    ``columns`` are those that the batch has already, such as advantages.
    """
    if not method.has("posttrain_annotate"):
        return {}
    models = _Models()
    examples = [Example({}, _columns(inputs, place)) for place in range(inputs.size)]
    for name, role in inputs.roles.items():
        assert role.mask is not None  # read_inputs gives every role of log-probs one
        if len(role.mask) != inputs.size:
            continue  # separate rows, such as demonstrations
        for row, mask in enumerate(role.mask):
            count = int(mask.sum())
            sequence = Sequence(torch.arange(count + 1), torch.arange(count + 1) > 0)
            models.known[id(sequence)] = {model: logps[row][mask] for model, logps in role.logps.items()}
            examples[row].sequences[name] = [sequence]
            for key, values in columns.items():
                if isinstance(values, Tensor) and values.shape == role.mask.shape:
                    sequence.per_token[key] = values[row][mask]
                elif isinstance(values, Tensor) and len(values) == inputs.size and values.dim() == 1:
                    examples[row].columns[key] = float(values[row])
                elif isinstance(values, list) and len(values) == inputs.size:
                    examples[row].columns[key] = values[row]
    try:
        found = method.annotate(examples=examples, models=models, config=config, state=dict(inputs.others))
    except NotInTheFile:
        return {}
    add_columns(examples, found, method.name)
    return build_batch(examples, torch.device("cpu"))[0].columns


def _columns(inputs: Inputs, place: int) -> dict[str, Any]:
    """Return the columns of one row: its item of a list with one a row, everything else unchanged."""
    return {
        name: value[place] if isinstance(value, list) and len(value) == inputs.size else value
        for name, value in inputs.others.items()
    }
