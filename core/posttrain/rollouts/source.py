"""Online runs: prompts, completions, rewards, advantages, and the examples that come of them."""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from posttrain.engine.forward import sequences_of
from posttrain.engine.source import Order, count_steps
from posttrain.engine.step import shared_logps
from posttrain.errors import PluginError, RunFailed, SettingsError
from posttrain.generation.protocol import Generator, Sampling
from posttrain.rewards import Reward, score
from posttrain.rollouts.rollouts import Rollout, Rollouts
from posttrain.views import Example, Sequence

if TYPE_CHECKING:
    from posttrain.engine.run import Run

#: Columns that describe a prompt to the core and are nothing to a reward.
_OWN = ("prompt", "prompt_text")


class Online:
    """Source of an online method. A batch of rollouts serves ``updates * minibatches`` optimiser steps."""

    def __init__(self, run: Run, prompts: Any, generator: Generator, rewards: list[Reward]):
        settings = run.settings
        assert settings.batch_size is not None
        self.run, self.prompts, self.generator, self.rewards = run, prompts, generator, rewards
        self.order = Order(len(prompts), settings.batch_size, settings.shuffle, settings.seed)
        self.per_rollout = settings.updates_per_rollout * settings.minibatches_per_rollout
        if self.per_rollout < 1:
            raise SettingsError("updates-per-rollout and minibatches-per-rollout must be at least 1.")
        self.buffer: list[Example] = []
        self.metrics: dict[str, float] = {}

    def steps(self) -> int:
        """Optimiser steps, from ``steps`` or ``epochs`` over the prompts."""
        return count_steps(self.order.per_epoch * self.per_rollout, self.run.settings)

    def examples(self, number: int) -> list[Example]:
        """The examples of optimiser step ``number``: new rollouts, or the next part of those at hand."""
        rollout, phase = divmod(number, self.per_rollout)
        self.metrics = {}
        if phase == 0:
            self.buffer = self._collect(rollout)
        update, part = divmod(phase, self.run.settings.minibatches_per_rollout)
        return self._part(rollout, update, part)

    def _part(self, rollout: int, update: int, part: int) -> list[Example]:
        """The ``part``-th minibatch of one pass; every pass is cut anew."""
        parts = self.run.settings.minibatches_per_rollout
        if parts == 1:
            return self.buffer
        generator = torch.Generator().manual_seed(_seed(self.run.settings.seed, "cut", rollout, update))
        order = torch.randperm(len(self.buffer), generator=generator).tensor_split(parts)[part]
        return [self.buffer[i] for i in order.tolist()]

    def _collect(self, number: int) -> list[Example]:
        begun = time.monotonic()
        indices = self.order.at(number)
        items = rollouts_of(
            self.run, self.generator, self.prompts, indices, self._sampling(), self._seeds(number, indices)
        )
        generated = time.monotonic()
        dropped = give_rewards(self.run, self.rewards, items)
        items = [item for item in items if item.reward == item.reward]
        if not items:
            raise RunFailed(
                f"Every reward of all {dropped} completions of rollout {number} is None. Nothing can be learnt."
            )
        rollouts = Rollouts(
            items, lambda reference: shared_logps(self.run, sequences_of([i.example() for i in items]), reference)
        )
        rewards = torch.tensor([item.reward for item in items])  # (B,)
        advantages = self._advantages(rewards, rollouts)
        if self.per_rollout > 1:
            rollouts.old_logps  # noqa: B018  (read now, while the policy is the one that sampled)
        self.metrics = reward_metrics(rewards, rollouts) | {
            "rollouts_dropped": float(dropped),
            "generation_seconds": generated - begun,
            "reward_seconds": time.monotonic() - generated,
        }
        self._write_samples(number, items, advantages)
        return self._examples(rollouts, advantages)

    def _sampling(self) -> Sampling:
        settings = self.run.settings
        assert settings.max_new_tokens is not None
        stop = tuple(settings.stop or ())
        return Sampling(settings.max_new_tokens, settings.temperature, settings.top_p, settings.top_k, stop)

    def _seeds(self, number: int, indices: list[int]) -> list[list[int]]:
        """One seed per completion, from the run's seed and its place alone: any layout samples the same (G7)."""
        size, seed = self.run.settings.group_size, self.run.settings.seed
        assert size is not None
        return [[_seed(seed, "sample", number, place, k) for k in range(size)] for place in range(len(indices))]

    def _advantages(self, rewards: Tensor, rollouts: Rollouts) -> Tensor:
        run = self.run
        if not run.method.has("posttrain_advantages"):
            return rewards
        with torch.no_grad():
            advantages = run.method.advantages(rewards=rewards, rollouts=rollouts, config=run.config, state=run.state)
        if not isinstance(advantages, Tensor) or advantages.shape not in (rewards.shape, rollouts.mask.shape):
            shape = tuple(advantages.shape) if isinstance(advantages, Tensor) else type(advantages).__name__
            raise PluginError(
                f"posttrain_advantages of '{run.card.name}' returned {shape}. Expected one value a rollout "
                f"{tuple(rewards.shape)} or one a token {tuple(rollouts.mask.shape)}."
            )
        return advantages.detach()

    def _examples(self, rollouts: Rollouts, advantages: Tensor) -> list[Example]:
        examples = []
        columns = {"sampled_logps": rollouts.sampled_logps}
        columns |= {n: getattr(rollouts, n) for n in ("old_logps", "reference_logps") if rollouts.computed(n)}
        if advantages.ndim == 2:
            columns["advantages"] = advantages
        for row, item in enumerate(rollouts.items):
            learn = item.completion.finished or not self.run.settings.mask_truncated
            example = item.example(learn)
            length = len(item.completion.ids) if learn else 0
            (sequence,) = example.sequences["completion"]
            sequence.per_token = {name: values[row, :length].clone() for name, values in columns.items()}
            example.columns = {"reward": item.reward, "group": float(rollouts.group[row])}
            if advantages.ndim == 1:
                example.columns["advantages"] = float(advantages[row])
            examples.append(example)
        return examples

    def _write_samples(self, number: int, items: list[Rollout], advantages: Tensor) -> None:
        for row, item in list(enumerate(items))[: self.run.settings.samples_per_step]:
            line: dict[str, Any] = {"step": number * self.per_rollout + 1, "group": item.group}
            line |= {"prompt": item.columns.get("prompt"), "completion": item.completion.text, "reward": item.reward}
            line |= {"rewards": item.parts, "finished": item.completion.finished}
            self.run.directory.sample(line | {"advantage": advantages[row].tolist() if advantages.ndim == 1 else None})

    def saved(self) -> dict[str, Any]:
        """Rollouts that later steps still need, as plain tensors (G19); nothing between two rollouts."""
        if self.run.step % self.per_rollout == 0:
            return {}
        rows = []
        for example in self.buffer:
            (sequence,) = example.sequences["completion"]
            rows.append([sequence.ids, sequence.trained, sequence.per_token, example.columns])
        return {"buffer": rows}

    def restore(self, saved: dict[str, Any]) -> None:
        """Undo ``saved``."""
        self.buffer = [
            Example({"completion": [Sequence(ids, trained, per_token)]}, columns)
            for ids, trained, per_token, columns in saved["buffer"]
        ]


class GreedyReward:
    """Evaluation of an online method: the reward of one greedy completion per held-out prompt."""

    def __init__(self, prompts: Any, generator: Generator, rewards: list[Reward], limit: int | None):
        self.prompts, self.generator, self.rewards = prompts, generator, rewards
        self.indices = list(range(len(prompts) if limit is None else min(limit, len(prompts))))

    def __call__(self, run: Run) -> dict[str, float]:
        """Mean reward, its parts, lengths and the share cut off."""
        assert run.settings.max_new_tokens is not None
        sampling = Sampling(run.settings.max_new_tokens, stop=tuple(run.settings.stop or ()), greedy=True)
        items = rollouts_of(run, self.generator, self.prompts, self.indices, sampling, [[0]] * len(self.indices))
        give_rewards(run, self.rewards, items)
        items = [item for item in items if item.reward == item.reward]
        found = reward_metrics(torch.tensor([item.reward for item in items]), Rollouts(items, lambda _: []))
        return {name: value for name, value in found.items() if not name.startswith(("reward_std", "zero_spread"))}


def rollouts_of(
    run: Run, generator: Generator, prompts: Any, indices: list[int], sampling: Sampling, seeds: list[list[int]]
) -> list[Rollout]:
    """Completions of the prompts at ``indices``, made by all ranks together, groups in order on every rank."""
    work = run.strategy.share([(place, prompts[index], seeds[place]) for place, index in enumerate(indices)])
    ids = [example.sequences["prompt"][0].ids for _, example, _ in work]
    with run.autocast():  # the sampler computes as the trainer does, or their log-probs would differ
        completions = generator.generate(ids, sampling, [row for _, _, row in work]) if work else []
    groups = [
        [Rollout(place, prompt_ids, completion, example.columns) for completion in group]
        for (place, example, _), prompt_ids, group in zip(work, ids, completions, strict=True)
    ]
    return [item for group in run.strategy.gather(groups) for item in group]


def give_rewards(run: Run, rewards: list[Reward], items: list[Rollout]) -> int:
    """Score every item, each rank its share; returns how many got no score from any reward."""
    mine = run.strategy.share(list(range(len(items))))
    names = [name for name in (items[0].columns if items else ()) if name not in _OWN]
    columns = {name: [items[i].columns.get(name) for i in mine] for name in names}
    prompts = [items[i].columns.get("prompt") for i in mine]
    total, parts = score(rewards, prompts, [items[i].completion.text for i in mine], columns)
    scored = [(float(total[k]), {n: float(v[k]) for n, v in parts.items()}) for k in range(len(mine))]
    for item, (value, by_name) in zip(items, run.strategy.gather(scored), strict=True):
        item.reward, item.parts = value, by_name
    return sum(item.reward != item.reward for item in items)


def reward_metrics(rewards: Tensor, rollouts: Rollouts) -> dict[str, float]:
    """What the log says of a batch of rollouts."""
    groups = [rewards[rollouts.group == g] for g in rollouts.group.unique()]
    spread = [float(group.std(correction=0)) for group in groups]
    found = {
        "reward": float(rewards.mean()),
        "reward_std": sum(spread) / len(spread),
        "zero_spread_share": sum(bool(group.max() == group.min()) for group in groups) / len(groups),
        "completion_length": float(rollouts.lengths.mean()),
        "truncated_share": float((~rollouts.finished).float().mean()),
    }
    if len(rollouts.reward_parts) > 1:
        found |= {f"reward_{name}": float(part.nanmean()) for name, part in rollouts.reward_parts.items()}
    return found


def _seed(*parts: Any) -> int:
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=7).digest(), "big")
