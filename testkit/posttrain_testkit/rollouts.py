"""Synthetic rollouts of a step, as ``posttrain_advantages`` sees them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from posttrain.catalogue.methods import Method
from posttrain.contract.generation import Completion
from posttrain.contract.planning import SampleRequest
from posttrain.contract.rollout import Rollout
from torch import Tensor

from posttrain_testkit.inputs import VOCABULARY


@dataclass(frozen=True)
class Rollouts:
    """The rollouts of a step as the hook sees them, with made-up numbers."""

    group: Tensor  # (B,)
    mask: Tensor  # (B, T)
    sampled_logps: Tensor  # (B, T)
    old_logps: Tensor  # (B, T)
    reference_logps: Tensor  # (B, T)
    teacher_logps: Tensor  # (B, T)
    finished: Tensor  # (B,)
    prompts: list[str]
    completions: list[str]
    columns: dict[str, list[Any]]
    rewards: Tensor  # (B,)
    source: list[str]
    items: list[Any]
    before: dict[str, Tensor] = field(default_factory=dict)  # (B, T) each

    def old(self, name: str) -> Tensor:
        """Return a statistic or an extra module's output before the update ``(B, T)``: made up, the same for a name."""
        if name == "logps":
            return self.old_logps
        if name not in self.before:
            phase = sum(map(ord, name)) % 7
            self.before[name] = torch.sin(self.old_logps * 1.7 + phase) * self.mask
        return self.before[name]

    def prefer(self, first: list[int], second: list[int]) -> Tensor:
        """Return the probability ``(P,)`` that one answer is better, from the rewards."""
        return torch.sigmoid(self.rewards[first] - self.rewards[second])

    @property
    def reward_parts(self) -> dict[str, Tensor]:
        """Rewards by name ``(B,)``: here there is a single one."""
        return {"reward": self.rewards}

    @property
    def turn(self) -> Tensor:
        """Turn of each token ``(B, T)``: the first half of a completion is one, the rest another."""
        return (torch.arange(self.mask.shape[1]) >= self.lengths[:, None] / 2).long() * self.mask

    @property
    def turn_rewards(self) -> Tensor:
        """Reward of each turn ``(B, 2)``: all of it in the last turn with tokens."""
        turns = self.turn.amax(1) if self.mask.shape[1] else torch.zeros(len(self.rewards), dtype=torch.long)
        return torch.zeros(len(self.rewards), 2, dtype=self.rewards.dtype).scatter(
            1, turns[:, None], self.rewards[:, None]
        )

    @property
    def lengths(self) -> Tensor:
        """Tokens of each completion ``(B,)``."""
        return self.mask.sum(-1)

    def take(self, places: list[int]) -> Rollouts:
        """Return these rollouts alone, in this order."""
        rows = torch.tensor(places)
        return Rollouts(
            group=self.group[rows],
            mask=self.mask[rows],
            sampled_logps=self.sampled_logps[rows],
            old_logps=self.old_logps[rows],
            reference_logps=self.reference_logps[rows],
            teacher_logps=self.teacher_logps[rows],
            finished=self.finished[rows],
            prompts=[self.prompts[place] for place in places],
            completions=[self.completions[place] for place in places],
            columns={name: [values[place] for place in places] for name, values in self.columns.items()},
            rewards=self.rewards[rows],
            source=[self.source[place] for place in places],
            items=[self.items[place] for place in places],
        )

    def worth(self, value: float) -> Rollouts:
        """Return the same rollouts with ``value`` as every reward, also of auxiliary ones."""
        lent = {name: [value] * len(values) for name, values in self.columns.items()}
        return replace(self, rewards=torch.full_like(self.rewards, value), columns=lent)

    def padded(self, columns: int) -> Rollouts:
        """Return the same rollouts with empty token columns on the right."""
        return replace(
            self,
            mask=F.pad(self.mask, (0, columns)),
            sampled_logps=F.pad(self.sampled_logps, (0, columns)),
            old_logps=F.pad(self.old_logps, (0, columns)),
            reference_logps=F.pad(self.reference_logps, (0, columns)),
            teacher_logps=F.pad(self.teacher_logps, (0, columns)),
            before={},
        )


def make_rollouts(
    groups: list[int], seed: int, near: bool = False, method: Method | None = None
) -> tuple[Tensor, Rollouts]:
    """Make rewards ``(B,)`` and rollouts for groups of these sizes; ``near``: the policy equals the reference.

    Rewards of completions that the ``method`` does not learn from are columns.
    """
    random = torch.Generator().manual_seed(seed)
    size = sum(groups)
    lengths = torch.randint(1, 6, (size,), generator=random)
    mask = torch.arange(int(lengths.max())) < lengths[:, None]  # (B, T)
    draw = torch.randn(2, *mask.shape, VOCABULARY, generator=random, dtype=torch.float64)
    logps, reference = draw.log_softmax(-1)[..., 0] * mask  # (B, T) each
    teacher = draw[0].log_softmax(-1)[..., 1] * mask  # (B, T)
    rewards = torch.randn(size, generator=random, dtype=torch.float64)
    group = torch.repeat_interleave(torch.arange(len(groups)), torch.tensor(groups))  # (B,)
    plans = plans_of(method, groups) if method is not None else [[SampleRequest(count)] for count in groups]
    columns = {}
    for name in sorted({ask.baseline_column for asks in plans for ask in asks} - {""}):
        values = torch.randn(len(groups), generator=random, dtype=torch.float64)
        columns[name] = values[group].tolist()
    for name in sorted({ask.opponent_column for asks in plans for ask in asks} - {""}):
        columns[name] = torch.rand(size, generator=random, dtype=torch.float64).tolist()
    rollouts = Rollouts(
        group=group,
        mask=mask,
        sampled_logps=logps,
        old_logps=logps,
        reference_logps=logps if near else reference,
        teacher_logps=teacher,
        finished=torch.ones(size, dtype=torch.bool),
        prompts=[f"prompt {int(one)}" for one in group],
        completions=[f"completion {place}" for place in range(size)],
        columns=columns,
        rewards=rewards,
        source=[source for asks, count in zip(plans, groups, strict=True) for source in _sources(asks, count)],
        items=[_item(place, int(group[place]), logps[place][mask[place]], rewards[place]) for place in range(size)],
    )
    return rewards, rollouts


def plans_of(method: Method, groups: list[int]) -> list[list[SampleRequest]]:
    """Return the method's sampling requests, one list a group."""
    if not method.has("posttrain_plan_rollouts"):
        return [[SampleRequest(count)] for count in groups]
    prompts: list[dict[str, Any]] = [{"prompt": f"prompt {place}", "completion": "a"} for place in range(len(groups))]
    return method.plan_rollouts(
        prompts=prompts, group_size=max(groups), config=method.config({}), state={}, random=Random(5)
    )


def _sources(asks: list[SampleRequest], count: int) -> list[str]:
    """Return the sources of a group's ``count`` completions: in the order of the requests, then the last one again."""
    asked = [ask for ask in asks if not (ask.baseline_column or ask.opponent_column) for _ in range(ask.samples)]
    names = ["mixture" if ask.mixture else ask.source for ask in asked] or ["policy"]
    return [names[min(place, len(names) - 1)] for place in range(count)]


def _item(place: int, group: int, logps: Tensor, reward: Tensor) -> Rollout:
    completion = Completion(torch.arange(len(logps)), logps.float(), True, f"completion {place}")
    return Rollout(group, torch.arange(2), completion, {"prompt": f"prompt {group}"}, float(reward))


def advantages_of(method: Method, config: Any, rewards: Tensor, rollouts: Rollouts) -> Tensor:
    """Return the method's advantages, with a fresh state."""
    return method.advantages_and_columns(rewards=rewards, rollouts=rollouts, config=config, state={})[0]
