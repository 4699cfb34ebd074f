"""Collection of one batch of rollouts: prompts, completions, rewards, selection, training examples."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from posttrain.contract.generation import Generator
from posttrain.contract.planning import SampleRequest, Selection
from posttrain.contract.rollout import Rollout, Rollouts
from posttrain.contract.views import Example, Sequence
from posttrain.data.tokens.encode_one import encode_shown
from posttrain.distillation.teacher_inputs import translate
from posttrain.errors import RunFailed
from posttrain.rewards import Reward
from posttrain.rollouts.ahead import Producer
from posttrain.rollouts.episodes import EpisodePlayer
from posttrain.rollouts.ledger import Ledger
from posttrain.rollouts.pool import Pool
from posttrain.rollouts.requests import PromptRequest, fold_auxiliary_rollouts, give_rewards, reward_metrics
from posttrain.rollouts.seeds import seed_of
from posttrain.rollouts.text_metrics import text_metrics
from posttrain.training import source
from posttrain.training.step import shared_results

if TYPE_CHECKING:
    from posttrain.training.run import Run


@dataclass
class Collected:
    """Training examples of a step and its metrics. ``advantages`` are None for pairs."""

    rollouts: Rollouts
    advantages: Tensor | None
    examples: list[Example]
    metrics: dict[str, float]


class Collector:
    """Collects batches of rollouts from a generator and rewards; ``judge`` compares two completions, if needed."""

    def __init__(
        self,
        run: Run,
        prompts: Any,
        generator: Generator,
        rewards: list[Reward],
        judge: Any = None,
        player: EpisodePlayer | None = None,
    ):
        settings = run.plan.settings
        self.run, self.prompts, self.rewards, self.judge = run, prompts, rewards, judge
        self.order = source.order_of(len(prompts), settings.data, settings.length)
        self.ledger = Ledger()
        self.producer = Producer(run, generator, self._orders, self.ledger, player)

    def collect(self, first: int, keep_old: bool) -> tuple[Collected, int]:
        """Return the rollouts from prompt batch ``first`` on, and the number of batches used.

        ``keep_old``: the rollouts serve several updates, so the log-probs of the sampling policy are computed now.
        """
        run = self.run
        pool, selection = self._choose(first)
        self._settle(first, pool, selection)
        begun = time.monotonic()
        rollouts = self._view(pool.items)
        advantages: Tensor | None = None
        if selection is not None and selection.pairs is not None:
            examples = self._pairs(rollouts, selection)
        else:
            advantages, examples = self._learnt(rollouts, keep_old)
        pool.add_seconds({"advantage_seconds": time.monotonic() - begun})
        metrics = pool.everything | {"rollouts_dropped": float(pool.unscored)} | pool.seconds | self.ledger.metrics()
        if run.plan.method.has("posttrain_select"):
            metrics["rollouts_learnt"] = len(pool.items) / max(1, len(pool.made))
            metrics["generation_rounds"] = float(pool.drawn)
        return Collected(rollouts, advantages, examples, metrics), pool.drawn

    def examples_of(self, items: list[Rollout]) -> list[Example]:
        """Return scored rollouts as training examples."""
        return self._learnt(self._view(items), keep_old=False)[1]

    def _learnt(self, rollouts: Rollouts, keep_old: bool) -> tuple[Tensor, list[Example]]:
        rewards = torch.tensor([item.reward for item in rollouts.items])  # (B,)
        self._teach(rollouts, rewards)
        advantages, columns = self._advantages(rewards, rollouts)
        if keep_old or any(item.old_logps is not None for item in rollouts.items):
            rollouts.old_logps  # noqa: B018  (computed now, while the policy is the one that sampled)
        return advantages, self._examples(rollouts, {"advantages": advantages, **columns})

    def _choose(self, first: int) -> tuple[Pool, Selection | None]:
        """Generate, score and select, once or until the step has its number of prompts."""
        run, pool = self.run, Pool()
        selection: Selection | None = None
        while True:
            items = self._generated(first + pool.drawn, pool)
            spent = pool.drawn >= run.plan.settings.rollouts.generation_rounds
            if not items and not spent:
                continue
            if not items and pool.items:
                return pool, selection
            if not items:
                raise RunFailed(
                    f"Nothing of {pool.drawn} batches of prompts could be learnt from: {', '.join(pool.reasons)}. "
                    "The generator lags behind or gives no log-probs; see ledger.jsonl."
                )
            if not run.plan.method.has("posttrain_select"):
                pool.items = items
                return pool, None
            rewards = torch.tensor([item.reward for item in items])  # (B,)
            rollouts = self._view(items)
            with torch.no_grad():
                selection = run.plan.method.select(
                    rollouts=rollouts, rewards=rewards, config=run.plan.config, state=run.compute.state
                )
            chosen = items if selection.rollouts is None else selection.rollouts
            if not selection.refill:
                pool.items = chosen
                return pool, selection
            pool.cut(chosen, self.order.batch_size)
            if len({item.group for item in pool.items}) == self.order.batch_size or spent:
                # Nothing useful in all rounds: keep the last batch; its gradient is what the method makes of it.
                pool.items = pool.items or items
                return pool, selection

    def _generated(self, number: int, pool: Pool) -> list[Rollout]:
        """Return all scored rollouts of prompt batch ``number``."""
        items, seconds = self.producer.take(number)
        begun = time.monotonic()
        for item in items:
            item.group += pool.drawn * self.order.batch_size
        pool.prompts.append(len(self.order.at(number)))
        pool.add_seconds(seconds)
        items, why, found = self.producer.drop_unusable(items)
        pool.why |= why
        if not items:
            return []
        pool.unscored += give_rewards(self.run.compute, self.rewards, items)
        scored = pool.leave_unscored(items, self.ledger)
        scored = fold_auxiliary_rollouts(scored, self._view(scored).prefer) if scored else scored
        if not scored:
            raise RunFailed(
                f"Every reward of all {len(items)} completions of rollout {number} is None. Nothing can be learnt."
            )
        if not pool.made:
            rewards = torch.tensor([item.reward for item in scored])  # (B,)
            pool.everything = reward_metrics(rewards, self._view(scored)) | text_metrics(scored) | found
        pool.made += scored
        pool.add_seconds({"reward_seconds": time.monotonic() - begun})
        return scored

    def _settle(self, first: int, pool: Pool, selection: Selection | None) -> None:
        """Enter the outcome of each prompt into the ledger."""
        paired = None
        if selection is not None and selection.pairs is not None:
            paired = {pool.items[row].group for pair in selection.pairs for row in pair}
        fates = pool.outcomes(
            paired, self.run.plan.settings.rollouts.mask_truncated, self.order.batch_size, self.ledger
        )
        for place, own in enumerate(fates):
            line = self.ledger.settle(first + place, own)
            self.run.outputs.directory.ledger({"step": self.run.progress.step + 1, **line})

    def _orders(self, number: int) -> list[PromptRequest]:
        """Build the requests of a batch, with seeds from the run's seed and each completion's place alone (G7)."""
        run = self.run
        size, seed = run.plan.settings.rollouts.group_size, run.plan.settings.data.seed
        assert size is not None
        indices = self.order.at(number)
        rows = [self.prompts[index] for index in indices]
        plans = [[SampleRequest(size)] for _ in rows]
        if run.plan.method.has("posttrain_plan_rollouts"):
            plans = run.plan.method.plan_rollouts(
                prompts=[dict(row.columns) for row in rows],
                group_size=size,
                config=run.plan.config,
                state=run.compute.state,
                random=random.Random(seed_of(seed, "plan", number)),
            )
        return [
            PromptRequest(place, indices[place], row, asks, [
                [seed_of(seed, "sample", number, place, *([turn] if turn else []), k) for k in range(ask.samples)]
                for turn, ask in enumerate(asks)
            ])
            for place, (row, asks) in enumerate(zip(rows, plans, strict=True))
        ]  # fmt: skip

    def _view(self, items: list[Rollout]) -> Rollouts:
        def compute(model: str, full: bool) -> list[dict[str, Tensor]]:
            return shared_results(self.run.compute, [item.sequence() for item in items], model, full)

        def prefer(first: list[int], second: list[int]) -> Tensor:
            # One rank asks for each pair once: a server may answer differently the next time.
            mine = self.run.compute.strategy.scatter(list(zip(first, second, strict=True)))
            images = [[image.picture() for image in items[i].pictures] for i, _ in mine]
            asked = self.judge(
                [items[i].columns.get("prompt") for i, _ in mine],
                [items[i].completion.text for i, _ in mine],
                [items[j].completion.text for _, j in mine],
                *([images] if any(images) else []),
            )
            verdicts = self.run.compute.strategy.gather(asked)
            if verdicts and all(verdict is None for verdict in verdicts):
                raise RunFailed(
                    f"The judge could not say of any of {len(verdicts)} pairs which answer is better. Look at its "
                    "answers, or choose another: --judge"
                )
            return torch.tensor([float("nan") if verdict is None else verdict for verdict in verdicts])  # (P,)

        return Rollouts(items, compute, prefer if self.judge is not None else None)

    def _teach(self, rollouts: Rollouts, rewards: Tensor) -> None:
        """Give each rollout the teacher's input where it differs from the policy's."""
        run = self.run
        if run.compute.teacher is None:
            return
        prompts = [item.columns.get("prompt") for item in rollouts.items]
        privileged = run.plan.method.has("posttrain_teacher_prompts")
        if privileged:
            prompts = run.plan.method.teacher_prompts(
                rollouts=rollouts, rewards=rewards, config=run.plan.config, state=run.compute.state
            )
        for item, prompt in zip(rollouts.items, prompts, strict=True):
            item.taught = prompt is not None
            answer = item.completion.ids
            if prompt is None:
                continue
            if run.compute.teacher.tokenizer is not None:
                item.teacher, item.alignment = translate(
                    prompt,
                    answer,
                    run.compute.tokenizer,
                    run.compute.stop_ids,
                    run.compute.teacher,
                    run.plan.settings.data,
                    item.columns,
                )
            elif privileged:
                asked, _ = encode_shown(
                    prompt, run.compute.tokenizer, run.plan.settings.data, run.compute.stop_ids, item.columns
                )
                own = item.sequence()
                learnt, moved = own.trained[len(item.prompt_ids) :], len(asked) - len(item.prompt_ids)
                later = [
                    replace(one, start=one.start + moved) for one in own.images if one.start >= len(item.prompt_ids)
                ]
                item.teacher = Sequence(
                    torch.cat([asked.ids, answer]),
                    torch.cat([asked.trained, learnt]),
                    breaks=tuple(place + moved for place in own.breaks),
                    images=(*asked.images, *later),
                )

    def _advantages(self, rewards: Tensor, rollouts: Rollouts) -> tuple[Tensor, dict[str, Tensor]]:
        """Return advantages and the method's other columns, each ``(B,)`` or ``(B, T)``."""
        run = self.run
        if not run.plan.method.has("posttrain_advantages"):
            return rewards, {}
        with torch.no_grad():
            return run.plan.method.advantages_and_columns(
                rewards=rewards, rollouts=rollouts, config=run.plan.config, state=run.compute.state
            )

    def _examples(self, rollouts: Rollouts, found: dict[str, Tensor]) -> list[Example]:
        """Build training examples with the columns ``found``, each ``(B,)`` or ``(B, T)``."""
        examples = []
        columns = {"sampled_logps": rollouts.sampled_logps}
        names = ("old_logps", "reference_logps", "teacher_logps")
        columns |= {name: getattr(rollouts, name) for name in names if rollouts.computed(name)}
        columns |= {f"old_{name}": values for name, values in rollouts.known().items()}
        columns |= {name: values for name, values in found.items() if values.ndim == 2}
        for row, item in enumerate(rollouts.items):
            learn = item.completion.finished or not self.run.plan.settings.rollouts.mask_truncated
            example = rollouts.example(row, learn)
            length = item.completion.count if learn else 0
            (sequence,) = example.sequences["completion"]
            sequence.per_token = {name: values[row, :length].clone() for name, values in columns.items()}
            if self.run.compute.teacher is not None:
                example.columns["taught"] = item.taught
            example.columns |= {name: float(values[row]) for name, values in found.items() if values.ndim == 1}
            examples.append(example)
        return examples

    def _pairs(self, rollouts: Rollouts, selection: Selection) -> list[Example]:
        examples = []
        sampled = [item.sequence() for item in rollouts.items]
        for sequence, item in zip(sampled, rollouts.items, strict=True):
            known = item.completion.sampled_logps  # (t,)
            own = item.source == "policy"
            sequence.per_token["sampled_logps"] = known if own else torch.full_like(known, torch.nan)
        for place, (chosen, rejected) in enumerate(selection.pairs or ()):
            roles = {"chosen": [sampled[chosen]], "rejected": [sampled[rejected]]}
            columns = {name: float(values[place]) for name, values in selection.columns.items()}
            examples.append(Example(roles, columns))
        if not examples:
            raise RunFailed(
                "No two answers of the whole step could be told apart. Raise --temperature, or --batch-size."
            )
        return examples
