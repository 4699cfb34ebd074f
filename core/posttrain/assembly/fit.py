"""Fitting a run into free memory: smaller passes, then recomputed layers, then offloaded activations.

The usual sizes stay where they fit, on every machine: losses do not depend on the cut but for rounding. A choice
becomes part of the run's settings, so that a resumed run keeps it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from posttrain.assembly.estimate import free_bytes
from posttrain.settings import Settings
from posttrain.training.micro_batches import token_budget

#: Share of the free memory that a run may take: a GPU is the run's own, and a machine's memory is shared.
SHARES = {"cuda": 0.9}
SHARE_ELSEWHERE = 0.8
#: Tokens of the smallest pass that is chosen: smaller ones take longer and hardly less memory.
SMALLEST = 128
#: Where nothing fits, a choice that takes up to so much more than the least is preferred if it takes less time.
WORTH = 1.01


@dataclass(frozen=True)
class Fit:
    """Settings with which a run fits, or those that come closest."""

    settings: Settings
    changes: dict[str, Any]
    """The options that were chosen; empty where the usual ones fit, or nothing may be chosen."""
    note: str = ""
    """One line on what was chosen and why; empty without a choice."""

    @property
    def flags(self) -> str:
        """The choice as options of the command line."""
        words = {name: f"--{name.replace('_', '-')}" for name in self.changes}
        return " ".join(
            words[name] if value is True else f"{words[name]} {value}" for name, value in self.changes.items()
        )


def fit(
    settings: Settings, device: torch.device, online: bool, longest: int, needed: Callable[[Settings], float]
) -> Fit:
    """Choose how a run of one process fits into the memory that is free on ``device``.

    ``needed`` returns the bytes that settings would take beyond what this process has; ``longest`` is the number of
    tokens of the longest example, which has a pass of its own. Options that were given stay as they are.
    """
    share = SHARES.get(device.type, SHARE_ELSEWHERE)
    room, plain = share * free_bytes(device), needed(settings)
    if plain <= room:
        return Fit(settings, {})
    usual = token_budget(settings.memory.micro_batch_tokens, device, online, bool(settings.model.autocast))
    tried: list[tuple[float, dict[str, Any]]] = [(plain, {})]
    for changes in _candidates(settings, device, usual, longest):
        tried.append((needed(settings.replace(**changes)), changes))
        if tried[-1][0] <= room:
            break
    size, chosen = tried[-1]
    if size > room:
        least = min(size for size, _ in tried)
        size, chosen = next((size, changes) for size, changes in tried if size <= least * WORTH)
    found = Fit(settings.replace(**chosen), chosen)
    note = (
        f"Passes of {max(usual, longest)} tokens would take about {_mb(plain)} more memory, and the run may take "
        f"{_mb(room)}, {share:.0%} of what is free"
    )
    if size <= room:
        return replace(found, note=f"{note}: {found.flags} was chosen, for about {_mb(size)}.")
    even = f" It takes about {_mb(size)} even with {found.flags}" if chosen else " Smaller passes do not help"
    return replace(found, note=f"{note}.{even}. If it is killed: --lora, --quantize nf4, a smaller model.")


def _candidates(settings: Settings, device: torch.device, usual: int, longest: int) -> Iterator[dict[str, Any]]:
    """Yield choices of the options that were not given, each taking less memory or more time than the one before."""
    sizes = [usual]
    while settings.memory.micro_batch_tokens is None and sizes[-1] > max(SMALLEST, longest):
        sizes.append(max(SMALLEST, sizes[-1] // 2))
    passes: list[dict[str, Any]] = [{"micro_batch_tokens": size} for size in sizes[1:]]
    yield from passes
    saved: dict[str, Any] = {}
    if settings.model.gradient_checkpointing is None:
        saved["gradient_checkpointing"] = True
        yield from (saved | one for one in [{}, *passes])
    if settings.memory.offload_activations is None and device.type == "cuda":
        saved["offload_activations"] = True
        yield from (saved | one for one in [{}, *passes])


def _mb(size: float) -> str:
    return f"{size / 2**20:,.0f} MB"
