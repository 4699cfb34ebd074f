"""What the routers of a mixture of experts do with the tokens of a pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def recorded(decoder: Any) -> Iterator[list[Tensor]]:
    """Collect, inside the block, the router logits ``(N, E)`` of each layer of one pass over N tokens."""
    found: list[Tensor] = []

    def ask(module: Any, positional: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return positional, named | {"output_router_logits": True}

    def keep(module: Any, inputs: Any, output: Any) -> None:
        found.extend(logits.flatten(0, -2) for logits in output["router_logits"])

    hooks = [decoder.register_forward_pre_hook(ask, with_kwargs=True), decoder.register_forward_hook(keep)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def routing_sums(layers: list[Tensor], places: list[Tensor], choices: int) -> Tensor:
    """Choices and sums of probabilities of each expert over all layers, ``(2, E)``; a token counts as often as placed.

    ``places`` are where each sequence's tokens lie among those of ``layers``, whose router logits are ``(N, E)``.
    """
    count, experts = layers[0].shape
    device = layers[0].device
    weights = torch.cat(places).to(device).bincount(minlength=count)  # (N,)
    kind = torch.float64 if layers[0].dtype == torch.float64 else torch.float32
    weights = weights.to(kind)
    chosen, summed = torch.zeros(2, experts, dtype=kind, device=device).unbind()
    for logits in layers:
        likely = logits.softmax(-1)
        best = likely.topk(choices, dim=-1).indices  # (N, choices)
        chosen = chosen.scatter_add(0, best.flatten(), weights.repeat_interleave(choices))
        summed = summed + (likely.to(kind) * weights[:, None]).sum(0)
    return torch.stack([chosen, summed])
