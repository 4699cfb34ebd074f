"""What online hooks see: every rollout of the whole step, on every rank alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from posttrain.engine.forward import pad_tokens, token_mask
from posttrain.generation.protocol import Completion
from posttrain.views import Example, Sequence


@dataclass
class Rollout:
    """One sampled completion: of which prompt (``group``), from which tokens, worth what."""

    group: int
    prompt_ids: Tensor  # (p,)
    completion: Completion
    columns: dict[str, Any]
    reward: float = float("nan")
    parts: dict[str, float] = field(default_factory=dict)

    def example(self, learn: bool = True) -> Example:
        """The rollout as a training example: exactly the sampled tokens, never text encoded again (G11)."""
        ids = torch.cat([self.prompt_ids, self.completion.ids])
        trained = torch.zeros(len(ids), dtype=torch.bool)
        trained[len(self.prompt_ids) :] = learn
        return Example({"completion": [Sequence(ids, trained)]})


class Rollouts:
    """All rollouts of a step as tensors without gradient. B rollouts, T tokens of the longest one.

    ``group`` ``(B,)`` numbers the prompts from 0; ``mask``, ``sampled_logps`` ``(B, T)``; ``lengths``, ``finished``
    ``(B,)``; ``prompts``, ``completions`` as in the data and as text; ``columns`` of the data by name;
    ``reward_parts`` ``(B,)`` by reward. ``old_logps`` and ``reference_logps`` ``(B, T)`` cost a forward pass each,
    when first read.
    """

    def __init__(self, items: list[Rollout], logps: Callable[[bool], list[Tensor]]):
        self.items = items
        self._logps = logps
        order = {group: place for place, group in enumerate(dict.fromkeys(item.group for item in items))}
        self.group = torch.tensor([order[item.group] for item in items])  # (B,)
        self.mask = token_mask([len(item.completion.ids) for item in items])  # (B, T)
        self.lengths = self.mask.sum(1).float()  # (B,)
        self.finished = torch.tensor([item.completion.finished for item in items])  # (B,)
        self.sampled_logps = self._padded([item.completion.logps for item in items])  # (B, T)
        self.prompts = [item.columns.get("prompt") for item in items]
        self.completions = [item.completion.text for item in items]
        names = items[0].columns if items else ()
        self.columns = {name: [item.columns.get(name) for item in items] for name in names}
        parts = items[0].parts if items else ()
        self.reward_parts = {name: torch.tensor([item.parts[name] for item in items]) for name in parts}  # (B,) each

    def _padded(self, rows: list[Tensor]) -> Tensor:
        return pad_tokens(torch.cat(rows), self.mask)

    @cached_property
    def old_logps(self) -> Tensor:
        """Log-probs under the policy as it is before this step's updates, ``(B, T)``."""
        return self._padded(self._logps(False))

    @cached_property
    def reference_logps(self) -> Tensor:
        """Log-probs under the reference, ``(B, T)``."""
        return self._padded(self._logps(True))

    def computed(self, name: str) -> bool:
        """Whether ``old_logps`` or ``reference_logps`` has been read."""
        return name in self.__dict__

    def __len__(self) -> int:
        return len(self.items)
