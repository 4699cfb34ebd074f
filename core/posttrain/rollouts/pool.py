"""Rollouts on their way to one step, and the outcome of each requested prompt."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from posttrain.contract.rollout import Rollout
from posttrain.rollouts.ledger import FILTERED, SURPLUS, TRUNCATED, UNSCORED, Ledger


@dataclass
class Pool:
    """Rollouts chosen so far for one step."""

    items: list[Rollout] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)
    """Number of prompts of each generated batch; groups are numbered across them."""
    made: list[Rollout] = field(default_factory=list)
    """All rollouts that have a reward and may be trained on."""
    why: dict[int, str] = field(default_factory=dict)
    """Groups without any usable rollout, with the reason."""
    surplus: set[int] = field(default_factory=set)
    """Groups beyond the number of prompts of a step."""
    unscored: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    everything: dict[str, float] = field(default_factory=dict)
    """Metrics of all that was generated, before anything was dropped."""

    @property
    def drawn(self) -> int:
        """Batches of prompts that were generated for."""
        return len(self.prompts)

    @property
    def reasons(self) -> list[str]:
        """Reasons why prompts have nothing left, each with its count."""
        return [f"{reason} {count}" for reason, count in Counter(self.why.values()).items()]

    def add_seconds(self, found: dict[str, float]) -> None:
        """Add times by name."""
        for name, value in found.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + value

    def leave_unscored(self, items: list[Rollout], ledger: Ledger) -> list[Rollout]:
        """Return those of ``items`` that have a reward, and account for the others."""
        scored = [item for item in items if item.reward == item.reward]
        left = {item.group for item in scored}
        for item in items:
            if item.reward != item.reward:
                ledger.lose(UNSCORED, len(item.completion.ids))
                if item.group not in left:
                    self.why[item.group] = UNSCORED
        return scored

    def cut(self, chosen: list[Rollout], size: int) -> None:
        """Keep the first ``size`` groups of the pool and ``chosen``."""
        groups = list(dict.fromkeys(item.group for item in [*self.items, *chosen]))
        self.items = [item for item in [*self.items, *chosen] if item.group in groups[:size]]
        self.surplus |= set(groups[size:])

    def outcomes(self, paired: set[int] | None, mask_truncated: bool, size: int, ledger: Ledger) -> list[list[str]]:
        """Return for each batch and each of its prompts "" where it is trained on, else the reason.

        ``paired`` are the groups of the step's pairs, in steps of pairs. Groups are numbered by ``size`` a batch.
        """
        made, kept = {id(item) for item in self.made}, {id(item) for item in self.items}
        learnt: set[int] = set()
        cut_off: set[int] = set()
        for item in self.items:
            if id(item) in made and (paired is None or item.group in paired):
                whole = paired is not None or item.completion.finished or not mask_truncated
                (learnt if whole else cut_off).add(item.group)
        for item in self.made:
            if id(item) not in kept:
                ledger.lose(SURPLUS if item.group in self.surplus else FILTERED, len(item.completion.ids))

        def fate(group: int) -> str:
            if group in learnt:
                return ""
            if group in cut_off:
                return TRUNCATED
            return self.why.get(group) or (SURPLUS if group in self.surplus else FILTERED)

        return [[fate(batch * size + place) for place in range(count)] for batch, count in enumerate(self.prompts)]
