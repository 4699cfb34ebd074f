"""Router metrics of a mixture of experts: how evenly tokens are spread, and how certain routers are.

Counts are those of the whole optimiser step, with prompts and without padding; shared prompts count once per sequence.
So the numbers do not depend on micro-batches, packing, shared prompts or the number of processes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def add_load(loads: list[Tensor], load: Tensor) -> None:
    """Add a pass's ``load`` ``(L, E + 3)`` (see ``routing.Routers.load``) to the sum in ``loads``."""
    loads[:] = [loads[0] + load.cpu() if loads else load.cpu()]


def router_metrics(loads: list[Tensor], choices: int) -> dict[str, float]:
    """Return metrics by name of a step, from each process's counts, for tokens of ``choices`` experts each.

    ``router_load_max`` and ``router_load_min`` are the largest and the smallest load of an expert, of all layers, over
    the even load: 1 where all experts have as many tokens. ``router_entropy`` is the mean over tokens and layers of the
    entropy of a token's probabilities over all experts, in nats. Where experts are replayed, ``router_replaced_share``
    is the share of tokens and layers for which the router would have chosen others.
    """
    if not loads:
        return {}
    total = torch.stack(loads).sum(0)  # (L, E + 3)
    counts, (entropies, replayed, replaced) = total[:, :-3], total[:, -3:].T
    chosen = counts.sum(1)  # (L,)
    shares = counts / chosen[:, None] * counts.shape[1]  # (L, E), 1 is even
    found = {"router_replaced_share": float(replaced.sum() / replayed.sum())} if replayed.any() else {}
    return found | {
        "router_load_max": float(shares.max()),
        "router_load_min": float(shares.min()),
        "router_entropy": float(entropies.sum() / (chosen.sum() / choices)),
    }
