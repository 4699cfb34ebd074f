"""What online hooks see: every rollout of the whole step, on every rank alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from posttrain.contract.generation import Completion, Episode
from posttrain.contract.images import Image
from posttrain.contract.pad import pad_tokens, token_mask
from posttrain.contract.views import Example, Sequence


@dataclass
class Rollout:
    """One completion: of which prompt (``group``), from which tokens, made by whom, worth what."""

    group: int
    prompt_ids: Tensor  # (p,)
    completion: Completion
    columns: dict[str, Any]
    reward: float = float("nan")
    parts: dict[str, float] = field(default_factory=dict)
    source: str = "policy"
    """Who answered: policy, reference, teacher, mixture or data; a method may say replay of what it kept."""
    reward_as: str = ""
    """Name under which its reward serves the prompt's other rollouts; then it is not learnt from."""
    compared_as: str = ""
    """Name under which the others' chances against it serve them; then it is not learnt from."""
    old_logps: Tensor | None = None
    """Log-probs ``(t,)`` under the policy that sampled it, of a rollout that was kept from an earlier step."""
    teacher: Sequence | None = None
    """The sequence that the teacher sees, where it is another one."""
    alignment: Any = None
    """Which tokens of the completion stand for which of the teacher's, where it has another tokeniser."""
    taught: bool = True
    """Whether anything is to be learnt from the teacher."""
    images: tuple[Image, ...] = ()
    """The pictures of its prompt."""

    def sequence(self, learn: bool = True) -> Sequence:
        """Exactly the sampled tokens behind the prompt's, never text encoded again (G11)."""
        ids = torch.cat([self.prompt_ids, self.completion.ids])
        trained = torch.zeros(len(ids), dtype=torch.bool)
        episode = self.completion.episode
        if learn:
            trained[len(self.prompt_ids) :] = True if episode is None else episode.sampled
        teacher = self.teacher
        if teacher is not None and not learn:
            teacher = replace(teacher, trained=torch.zeros_like(teacher.trained), per_token={})
        breaks = () if episode is None else tuple(len(self.prompt_ids) + place for place in episode.breaks)
        alignment = self.alignment if learn else None
        return Sequence(ids, trained, teacher=teacher, alignment=alignment, breaks=breaks, images=self.images)

    def kept(self) -> dict[str, Any]:
        """This rollout as plain values, to be kept in a method's state beyond its step."""
        completion = self.completion
        return {
            "prompt_ids": self.prompt_ids,
            "completion": [completion.ids, completion.logps, completion.finished, completion.text],
            "columns": self.columns,
            "reward": self.reward,
            "parts": self.parts,
            "source": self.source,
            "images": self.images,
            "old_logps": completion.sampled_logps if self.old_logps is None else self.old_logps,
            "episode": None if completion.episode is None else vars(completion.episode),
        }

    @classmethod
    def of(cls, kept: dict[str, Any], group: int) -> Rollout:
        """A rollout from what ``kept`` gave, as one of prompt ``group`` of this step."""
        plain = dict(kept)
        completion, episode = Completion(*plain.pop("completion")), plain.pop("episode", None)
        completion.episode = None if episode is None else Episode(**episode)
        return cls(**{**plain, "group": group, "completion": completion})


#: Gives, for "policy", "reference" or "teacher" and whether statistics are wanted, each rollout's results by name.
Compute = Callable[[str, bool], list[dict[str, Tensor]]]
#: Gives the probability ``(P,)`` that the first of two rollouts is the better answer.
Prefer = Callable[[list[int], list[int]], Tensor]


class Rollouts:
    """All rollouts of a step as tensors without gradient. B rollouts, T tokens of the longest one.

    Tokens that an environment put between those of the model take no place. ``group`` ``(B,)`` numbers the prompts from
    0; ``mask``, ``sampled_logps``, ``turn`` ``(B, T)``; ``turn_rewards`` ``(B, K)``; ``lengths``, ``finished``
    ``(B,)``; ``source``, ``prompts``, ``completions`` as in the data and as text; ``columns`` of the data by name;
    ``reward_parts`` ``(B,)`` by reward. ``old_logps``, ``reference_logps``, ``teacher_logps`` ``(B, T)`` and
    ``old(name)`` cost a forward pass each, when first read.
    """

    def __init__(self, items: list[Rollout], compute: Compute, prefer: Prefer | None = None):
        self.items = items
        self._compute = compute
        self._prefer = prefer
        self._old: dict[str, Tensor] = {}
        order = {group: place for place, group in enumerate(dict.fromkeys(item.group for item in items))}
        self.group = torch.tensor([order[item.group] for item in items])  # (B,)
        self.mask = token_mask([item.completion.count for item in items])  # (B, T)
        self.lengths = self.mask.sum(1).float()  # (B,)
        self.finished = torch.tensor([item.completion.finished for item in items])  # (B,)
        self.sampled_logps = self._padded([item.completion.sampled_logps for item in items])  # (B, T)
        self.source = [item.source for item in items]
        self.prompts = [item.columns.get("prompt") for item in items]
        self.completions = [item.completion.text for item in items]
        names = dict.fromkeys(name for item in items for name in item.columns)
        self.columns = {name: [item.columns.get(name) for item in items] for name in names}
        parts = items[0].parts if items else ()
        self.reward_parts = {name: torch.tensor([item.parts[name] for item in items]) for name in parts}  # (B,) each

    def _padded(self, rows: list[Tensor]) -> Tensor:
        return pad_tokens(torch.cat(rows), self.mask)

    @cached_property
    def turn(self) -> Tensor:
        """Turn of each token from 0, ``(B, T)`` int64; 0 everywhere where the model answers once."""
        found = [item.completion.episode for item in self.items]
        rows = [
            torch.zeros(item.completion.count, dtype=torch.long) if one is None else one.turn[one.sampled]
            for item, one in zip(self.items, found, strict=True)
        ]
        return self._padded(rows)

    @cached_property
    def turn_rewards(self) -> Tensor:
        """Reward of each turn, ``(B, K)``, 0 behind a rollout's last; they add up to the rollout's whole reward.

        What other rewards than the environment's gave stands in the last turn.
        """
        rows = []
        for item in self.items:
            own = list(item.completion.episode.rewards) if item.completion.episode is not None else [0.0]
            own[-1] += item.reward - sum(own)
            rows.append(torch.tensor(own))
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)  # (B, K)

    @cached_property
    def old_logps(self) -> Tensor:
        """Log-probs under the policy as it is before this step's updates, ``(B, T)``.

        Of a rollout kept from an earlier step: under the policy that sampled it.
        """
        now = self.old("logps")
        stored = [item.old_logps for item in self.items]
        if all(one is None for one in stored):
            return now
        rows = [row[mask] if one is None else one for row, mask, one in zip(now, self.mask, stored, strict=True)]
        return self._padded(rows)

    @cached_property
    def reference_logps(self) -> Tensor:
        """Log-probs under the reference, ``(B, T)``."""
        return self._padded([found["logps"] for found in self._compute("reference", False)])

    @cached_property
    def teacher_logps(self) -> Tensor:
        """Log-probs under the teacher, ``(B, T)``."""
        return self._padded([found["logps"] for found in self._compute("teacher", False)])

    def old(self, name: str) -> Tensor:
        """``(B, T)`` under the policy before this step's updates: log-probs, an extra module, a token statistic."""
        for full in (False, True):
            if name in self._old:
                break
            found = self._compute("policy", full)
            self._old |= {key: self._padded([one[key] for one in found]) for key in found[0]}
        if name not in self._old:
            raise AttributeError(f"the policy gives no '{name}'. It gives: {', '.join(self._old)}")
        return self._old[name]

    def known(self) -> dict[str, Tensor]:
        """What ``old`` has computed besides log-probs, each ``(B, T)``."""
        return {name: values for name, values in self._old.items() if name != "logps"}

    def prefer(self, first: list[int], second: list[int]) -> Tensor:
        """Probability ``(P,)`` that each rollout of ``first`` is a better answer than its counterpart in ``second``.

        By the run's judge (not a number where it cannot say), else a sigmoid of the difference of the rewards.
        """
        if self._prefer is not None:
            return self._prefer(first, second)
        rewards = torch.tensor([item.reward for item in self.items])  # (B,)
        return torch.sigmoid(rewards[first] - rewards[second])

    def computed(self, name: str) -> bool:
        """Whether ``old_logps``, ``reference_logps`` or ``teacher_logps`` has been read."""
        return name in self.__dict__

    def example(self, row: int, learn: bool = True) -> Example:
        """Rollout ``row`` as a training example."""
        item = self.items[row]
        columns = {"reward": item.reward, "group": float(self.group[row]), "source": item.source}
        return Example({"completion": [item.sequence(learn)]}, columns)

    def __len__(self) -> int:
        return len(self.items)
