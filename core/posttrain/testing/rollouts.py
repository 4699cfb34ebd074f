"""Synthetic rollouts of a step, as ``posttrain_advantages`` sees them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain.methods import Method
from posttrain.testing.inputs import VOCABULARY


@dataclass(frozen=True)
class Rollouts:
    """The rollouts of a step as the hook sees them, with made-up numbers."""

    group: Tensor  # (B,)
    mask: Tensor  # (B, T)
    sampled_logps: Tensor  # (B, T)
    old_logps: Tensor  # (B, T)
    reference_logps: Tensor  # (B, T)
    finished: Tensor  # (B,)
    prompts: list[str]
    completions: list[str]
    columns: dict[str, list[Any]]

    @property
    def lengths(self) -> Tensor:
        """Tokens of each completion ``(B,)``."""
        return self.mask.sum(-1)

    def take(self, places: list[int]) -> Rollouts:
        """Only these rollouts, in this order."""
        rows = torch.tensor(places)
        return Rollouts(
            group=self.group[rows],
            mask=self.mask[rows],
            sampled_logps=self.sampled_logps[rows],
            old_logps=self.old_logps[rows],
            reference_logps=self.reference_logps[rows],
            finished=self.finished[rows],
            prompts=[self.prompts[place] for place in places],
            completions=[self.completions[place] for place in places],
            columns=self.columns,
        )

    def padded(self, columns: int) -> Rollouts:
        """The same with empty token columns on the right."""
        return replace(
            self,
            mask=F.pad(self.mask, (0, columns)),
            sampled_logps=F.pad(self.sampled_logps, (0, columns)),
            old_logps=F.pad(self.old_logps, (0, columns)),
            reference_logps=F.pad(self.reference_logps, (0, columns)),
        )


def make_rollouts(groups: list[int], seed: int, near: bool = False) -> tuple[Tensor, Rollouts]:
    """Rewards ``(B,)`` and rollouts for groups of these sizes; ``near``: the policy is still the reference."""
    random = torch.Generator().manual_seed(seed)
    size = sum(groups)
    lengths = torch.randint(1, 6, (size,), generator=random)
    mask = torch.arange(int(lengths.max())) < lengths[:, None]  # (B, T)
    draw = torch.randn(2, *mask.shape, VOCABULARY, generator=random, dtype=torch.float64)
    logps, reference = draw.log_softmax(-1)[..., 0] * mask  # (B, T) each
    rewards = torch.randn(size, generator=random, dtype=torch.float64)
    group = torch.repeat_interleave(torch.arange(len(groups)), torch.tensor(groups))  # (B,)
    rollouts = Rollouts(
        group=group,
        mask=mask,
        sampled_logps=logps,
        old_logps=logps,
        reference_logps=logps if near else reference,
        finished=torch.ones(size, dtype=torch.bool),
        prompts=[f"prompt {int(one)}" for one in group],
        completions=[f"completion {place}" for place in range(size)],
        columns={},
    )
    return rewards, rollouts


def advantages_of(method: Method, config: Any, rewards: Tensor, rollouts: Rollouts) -> Tensor:
    """The method's advantages, with a fresh state."""
    return method.advantages(rewards=rewards, rollouts=rollouts, config=config, state={})
