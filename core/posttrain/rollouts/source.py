"""Source of an online run: batches of rollouts, each cut into optimiser steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from posttrain.contract.images import images_of, plain_images, plain_value, printable_value
from posttrain.contract.views import Example, Sequence
from posttrain.distillation.align import Alignment
from posttrain.errors import SettingsError
from posttrain.rollouts.collect import Collected, Collector
from posttrain.rollouts.overlap import OverlapAdvisor
from posttrain.rollouts.seeds import seed_of
from posttrain.training.source import count_steps

if TYPE_CHECKING:
    from posttrain.training.run import Run


class Online:
    """Source of examples in which a batch of rollouts serves ``updates * minibatches`` optimiser steps."""

    def __init__(self, run: Run, collector: Collector):
        settings = run.plan.settings
        self.run, self.collector = run, collector
        self.per_rollout = settings.rollouts.updates_per_rollout * settings.rollouts.minibatches_per_rollout
        if self.per_rollout < 1:
            raise SettingsError("updates-per-rollout and minibatches-per-rollout must be at least 1.")
        self.drawn = 0
        """Prompt batches generated for so far: one a rollout, more where prompts are dropped and refilled."""
        self.buffer: list[Example] = []
        self.metrics: dict[str, float] = {}
        self.pace = OverlapAdvisor(self.per_rollout)

    def steps(self) -> int:
        """Optimiser steps, from ``steps`` or ``epochs`` over the prompts."""
        return count_steps(self.collector.order.per_epoch * self.per_rollout, self.run.plan.settings.length)

    def examples(self, number: int) -> list[Example]:
        """Return the examples of optimiser step ``number``: new rollouts, or the next part of the current ones."""
        rollout, phase = divmod(number, self.per_rollout)
        self.metrics = {}
        if phase == 0:
            self.pace.begin()
            collected, drawn = self.collector.collect(self.drawn, keep_old=self.per_rollout > 1)
            self.drawn += drawn
            self.buffer, self.metrics = collected.examples, collected.metrics
            self._write_samples(rollout, collected)
            self._write_episodes(rollout, collected)
            self.pace.end(self.metrics["generation_seconds"])
            self._say_pace()
        update, part = divmod(phase, self.run.plan.settings.rollouts.minibatches_per_rollout)
        return self._part(rollout, update, part)

    def _say_pace(self) -> None:
        """Report once whether sampling ahead would pay here."""
        told = self.pace.verdict(self.run.plan.settings.rollouts.max_staleness)
        if told is not None:
            message, evidence = told
            self.run.outputs.directory.event("pace", "info", message, evidence)
            self.run.outputs.say(message)

    def close(self) -> None:
        """Write the outcome of all prompts, and close the generator."""
        summary = self.collector.ledger.summary()
        if summary["prompts_issued"]:
            counts = ", ".join(
                f"{summary[f'prompts_{state}']:.0f} {state}" for state in ("issued", "trained", "dropped", "pending")
            )
            self.run.outputs.directory.event("ledger", "info", f"prompts: {counts}", summary)
        self.collector.producer.close()

    def _part(self, rollout: int, update: int, part: int) -> list[Example]:
        """Return the ``part``-th minibatch of one pass; every pass is shuffled anew."""
        parts = self.run.plan.settings.rollouts.minibatches_per_rollout
        if parts == 1:
            return self.buffer
        generator = torch.Generator().manual_seed(seed_of(self.run.plan.settings.data.seed, "cut", rollout, update))
        order = torch.randperm(len(self.buffer), generator=generator).tensor_split(parts)[part]
        return [self.buffer[i] for i in order.tolist()]

    def _write_episodes(self, number: int, collected: Collected) -> None:
        """Write every episode in full, for ``posttrain episodes``."""
        for item in collected.rollouts.items:
            episode = item.completion.episode
            if episode is None:
                continue
            line = {
                "step": number * self.per_rollout + 1,
                "group": item.group,
                "prompt": printable_value(item.columns.get("prompt")),
            }
            line |= {
                "messages": printable_value(episode.messages),
                "reward": item.reward,
                "turn_rewards": episode.rewards,
            }
            line |= {"end": episode.end} | ({"tools": tools} if (tools := item.columns.get("tools")) else {})
            self.run.outputs.directory.episode(line)

    def _write_samples(self, number: int, collected: Collected) -> None:
        items, advantages = collected.rollouts.items, collected.advantages
        for row in spread_over_groups([item.group for item in items], self.run.plan.settings.watch.samples_per_step):
            item = items[row]
            line: dict[str, Any] = {"step": number * self.per_rollout + 1, "group": item.group}
            line |= {
                "prompt": printable_value(item.columns.get("prompt")),
                "completion": item.completion.text,
                "reward": item.reward,
            }
            line |= {"rewards": item.parts, "finished": item.completion.finished}
            if item.completion.versions is not None and len(item.completion.versions):
                line["version"] = int(item.completion.versions.min())
            if item.completion.episode is not None:
                line |= {
                    "messages": printable_value(item.completion.episode.messages),
                    "end": item.completion.episode.end,
                }
            if item.source != "policy":
                line["source"] = item.source
            known = advantages is not None and advantages.ndim == 1
            self.run.outputs.directory.sample(line | {"advantage": advantages[row].tolist() if known else None})  # type: ignore[index]  # known

    def saved(self) -> dict[str, Any]:
        """Return the position in the prompts and the rollouts that later steps still need, as plain tensors (G19)."""
        rows = []
        if self.run.progress.step % self.per_rollout:
            for example in self.buffer:
                sequences = {role: [_plain(s) for s in rows_] for role, rows_ in example.sequences.items()}
                rows.append([sequences, plain_value(example.columns)])
        return {"drawn": self.drawn, "buffer": rows, "ledger": self.collector.ledger.saved()}

    def restore(self, saved: dict[str, Any]) -> None:
        """Undo ``saved``."""
        self.drawn = saved["drawn"]
        self.collector.ledger.restore(saved["ledger"])
        self.buffer = [
            Example({role: [_sequence(plain) for plain in rows] for role, rows in sequences.items()}, columns)
            for sequences, columns in saved["buffer"]
        ]


def spread_over_groups(groups: list[int], count: int) -> list[int]:
    """Choose ``count`` rows, each prompt's first one before any prompt's second, in the order of the rows."""
    seen: dict[int, int] = {}
    rank = []
    for row, group in enumerate(groups):
        rank.append((seen.setdefault(group, 0), row))
        seen[group] += 1
    return sorted(row for _, row in sorted(rank)[:count])


def _plain(sequence: Sequence) -> list[Any]:
    teacher = None if sequence.teacher is None else _plain(sequence.teacher)
    alignment = None if sequence.alignment is None else vars(sequence.alignment)
    images = plain_images(sequence.images)
    fields = [sequence.ids, sequence.trained, sequence.per_token, teacher, alignment, sequence.breaks, images]
    return fields if sequence.experts is None else [*fields, sequence.experts]


def _sequence(plain: list[Any]) -> Sequence:
    ids, trained, per_token, teacher, alignment, breaks, *rest = plain  # older checkpoints know no images
    return Sequence(
        ids,
        trained,
        per_token,
        None if teacher is None else _sequence(teacher),
        None if alignment is None else Alignment(**alignment),
        tuple(breaks),
        images_of(rest[0]) if rest else (),
        rest[1] if len(rest) > 1 else None,
    )
