"""Rollouts as online hooks see them: those of the whole step, alike on every rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from posttrain.contract.generation import Completion, Episode
from posttrain.contract.images import Image, images_of, plain_images, plain_value
from posttrain.contract.pad import pad_tokens, token_mask
from posttrain.contract.views import Example, Sequence


@dataclass
class Rollout:
    """One completion with its prompt (``group``), its source and its reward."""

    group: int
    prompt_ids: Tensor  # (p,)
    completion: Completion
    columns: dict[str, Any]
    reward: float = float("nan")
    parts: dict[str, float] = field(default_factory=dict)
    source: str = "policy"
    """Source of the answer: policy, reference, teacher, mixture or data; replay for rollouts that a method kept."""
    baseline_column: str = ""
    """Column of the prompt's other rollouts that holds its reward; if set, it is not trained on."""
    opponent_column: str = ""
    """Column that holds the other rollouts' probability of beating it; if set, it is not trained on."""
    old_logps: Tensor | None = None
    """Log-probs ``(t,)`` under the policy that sampled it, of a rollout kept from an earlier step."""
    teacher: Sequence | None = None
    """The teacher's sequence, where it differs from the policy's."""
    alignment: Any = None
    """Alignment of the completion's tokens with the teacher's, where the tokenisers differ."""
    taught: bool = True
    """Whether the rollout is distilled from the teacher."""
    images: tuple[Image, ...] = ()
    """Images of its prompt and of its environment."""

    def sequence(self, learn: bool = True) -> Sequence:
        """Return the prompt's and the sampled tokens as they are, never text encoded again (G11)."""
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
        own: dict[str, Any] = {"breaks": breaks, "images": self.images, "experts": self.completion.experts}
        return Sequence(ids, trained, teacher=teacher, alignment=alignment, **own)

    @property
    def pictures(self) -> list[Image]:
        """Images that the model was shown, each once, in order."""
        return list({image.place: image for image in self.images}.values())

    def kept(self) -> dict[str, Any]:
        """Return this rollout as plain values, for a method's state beyond its step."""
        completion, episode = self.completion, self.completion.episode
        return {
            "prompt_ids": self.prompt_ids,
            "completion": [completion.ids, completion.logps, completion.finished, completion.text],
            "columns": plain_value(self.columns),
            "reward": self.reward,
            "parts": self.parts,
            "source": self.source,
            "images": plain_images(self.images),
            "old_logps": completion.sampled_logps if self.old_logps is None else self.old_logps,
            "episode": None if episode is None else _plain_episode(episode),
            "experts": completion.experts,
        }

    @classmethod
    def of(cls, kept: dict[str, Any], group: int) -> Rollout:
        """Rebuild a rollout from the result of ``kept``, as one of prompt ``group`` of this step."""
        plain = dict(kept)
        completion, episode = Completion(*plain.pop("completion")), plain.pop("episode", None)
        if episode is not None:
            completion.episode = Episode(**{**episode, "images": images_of(episode.get("images", []))})
        completion.experts = plain.pop("experts", None)
        images = images_of(plain.pop("images", []))
        return cls(**{**plain, "group": group, "completion": completion, "images": images})


def _plain_episode(episode: Episode) -> dict[str, Any]:
    plain = {name: value for name, value in vars(episode).items() if name != "images"}
    return plain | {"messages": plain_value(episode.messages), "images": plain_images(episode.images)}


#: Maps "policy", "reference" or "teacher" and whether statistics are wanted to each rollout's results by name.
Compute = Callable[[str, bool], list[dict[str, Tensor]]]
#: Returns the probability ``(P,)`` that the first of two rollouts is the better answer.
Prefer = Callable[[list[int], list[int]], Tensor]


class Rollouts:
    """All rollouts of a step as tensors without gradient. B rollouts, T tokens of the longest one.

    Tokens of an environment between the model's turns are left out. ``group`` ``(B,)`` numbers the prompts from 0;
    ``mask``, ``sampled_logps``, ``turn`` ``(B, T)``; ``turn_rewards`` ``(B, K)``; ``lengths``, ``finished`` ``(B,)``;
    ``source``, ``prompts``, ``completions`` as in the data and as text; ``columns`` of the data by name;
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
        """Turn of each token from 0, ``(B, T)`` int64; all 0 for single-turn answers."""
        found = [item.completion.episode for item in self.items]
        rows = [
            torch.zeros(item.completion.count, dtype=torch.long) if one is None else one.turn[one.sampled]
            for item, one in zip(self.items, found, strict=True)
        ]
        return self._padded(rows)

    @cached_property
    def turn_rewards(self) -> Tensor:
        """Reward of each turn, ``(B, K)``, 0 after a rollout's last; each row adds up to the rollout's whole reward.

        Rewards from outside the environment are added to the last turn.
        """
        rows = []
        for item in self.items:
            own = list(item.completion.episode.rewards) if item.completion.episode is not None else [0.0]
            own[-1] += item.reward - sum(own)
            rows.append(torch.tensor(own))
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)  # (B, K)

    @cached_property
    def old_logps(self) -> Tensor:
        """Log-probs under the policy before this step's updates, ``(B, T)``.

        For a rollout kept from an earlier step: under the policy that sampled it.
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
        """Return log-probs, an extra module's output or a token statistic ``(B, T)`` before this step's updates."""
        for full in (False, True):
            if name in self._old:
                break
            found = self._compute("policy", full)
            self._old |= {key: self._padded([one[key] for one in found]) for key in found[0]}
        if name not in self._old:
            raise AttributeError(f"the policy gives no '{name}'. It gives: {', '.join(self._old)}")
        return self._old[name]

    def known(self) -> dict[str, Tensor]:
        """Return what ``old`` has computed besides log-probs, each ``(B, T)``."""
        return {name: values for name, values in self._old.items() if name != "logps"}

    def prefer(self, first: list[int], second: list[int]) -> Tensor:
        """Return the probability ``(P,)`` that each rollout of ``first`` is a better answer than its counterpart in
        ``second``: by the run's judge (NaN where it cannot decide), else a sigmoid of the difference of the rewards.
        """
        if self._prefer is not None:
            return self._prefer(first, second)
        rewards = torch.tensor([item.reward for item in self.items])  # (B,)
        return torch.sigmoid(rewards[first] - rewards[second])

    def computed(self, name: str) -> bool:
        """Return whether ``old_logps``, ``reference_logps`` or ``teacher_logps`` has been read."""
        return name in self.__dict__

    def example(self, row: int, learn: bool = True) -> Example:
        """Return rollout ``row`` as a training example."""
        item = self.items[row]
        columns = {"reward": item.reward, "group": float(self.group[row]), "source": item.source}
        return Example({"completion": [item.sequence(learn)]}, columns)

    def __len__(self) -> int:
        return len(self.items)
