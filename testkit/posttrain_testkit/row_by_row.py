"""Reference results of plain transformers for each row alone, with which the core's passes are compared."""

from __future__ import annotations

import copy
from typing import Any

import torch
from posttrain.contract.views import Sequence


def row_by_row(model: Any, rows: list[Sequence]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return log-probs ``(n,)`` of the trained tokens and the gradient of their sum of squares, by parameter.

    Each row is read by a new copy of ``model``.
    """
    values: list[torch.Tensor] = []
    gradients: dict[str, Any] = {}
    for row in rows:
        fresh = copy.deepcopy(model)
        logits = fresh(input_ids=row.ids[None], use_cache=False).logits[0, :-1]
        logps = logits.log_softmax(-1).gather(1, row.ids[1:, None])[:, 0][row.trained[1:]]
        logps.square().sum().backward()
        values.append(logps.detach())
        for name, weight in fresh.named_parameters():
            gradients[name] = gradients.get(name, 0) + (weight.grad if weight.grad is not None else 0)
    return torch.cat(values), gradients
