"""Sampling ahead: a bounded queue of prompt batches between generator and trainer.

At the start of every batch of rollouts the generator gets the trainer's weights and requests for up to
``max_staleness`` further batches of prompts; then it pauses until the next batch. Batches are used in the order of the
prompts, so no completion starts from weights more than that many batches old. With 0 the generator samples while the
trainer waits, as without a queue. Versions of weights are optimiser steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from posttrain.contract.generation import Completion, Generator, Sampling
from posttrain.contract.rollout import Rollout
from posttrain.errors import GeneratorLost
from posttrain.generation.weights import weights_for
from posttrain.rollouts.episodes import EpisodePlayer
from posttrain.rollouts.ledger import STALE, UNKNOWN, Ledger
from posttrain.rollouts.requests import GenerateCall, PromptRequest, answer, generate_calls

if TYPE_CHECKING:
    from posttrain.training.run import Run

#: Number of times that a generator may be restarted without a completion in between.
REVIVALS = 3


@dataclass
class PendingBatch:
    """A batch of prompts sent to the generator."""

    orders: list[PromptRequest]
    calls: list[GenerateCall]
    futures: dict[GenerateCall, Future[list[list[Completion]]]] = field(default_factory=dict)
    """Completions that the generator works on while the trainer trains."""


class Producer:
    """Produce rollouts by the number of their prompt batch. ``orders_of`` gives the requests of a batch.

    ``player`` plays episodes in runs with an environment.
    """

    def __init__(
        self,
        run: Run,
        generator: Generator,
        orders_of: Callable[[int], list[PromptRequest]],
        ledger: Ledger,
        player: EpisodePlayer | None = None,
    ):
        settings = run.plan.settings
        self.run, self.generator, self.orders_of, self.ledger = run, generator, orders_of, ledger
        self.per_rollout = settings.rollouts.updates_per_rollout * settings.rollouts.minibatches_per_rollout
        self.depth = settings.rollouts.max_staleness
        self.player = player
        self.queue: dict[int, PendingBatch] = {}
        self.restarts = 0
        self._failed_restarts = 0
        self._pool = ThreadPoolExecutor(self.depth + 1, "rollouts") if self.depth else None
        self._idle_since: float | None = None
        self._idle = 0.0
        self._guessed = (0, 0)

    def publish(self) -> None:
        """Send the generator the current weights, unless it has them."""
        while True:
            try:
                self._publish()
                return
            except GeneratorLost as lost:
                self._revive(lost)

    def _publish(self) -> None:
        generator, step = self.generator, self.run.progress.step
        health = generator.health()
        if not health.alive:
            raise GeneratorLost(str(health.facts.get("error", "The generator does not answer.")))
        if health.version == step:
            return
        if not generator.abilities.mid_sequence:
            generator.drain()
        strategy = self.run.compute.strategy
        with strategy.gathered(self.run.compute.policy) if generator.abilities.own_weights else nullcontext():
            generator.accept(weights_for(self.run.compute.policy.model, generator.abilities, step, health.version))

    def take(self, number: int) -> tuple[list[Rollout], dict[str, float]]:
        """Return the rollouts of batch ``number`` and the seconds spent; request further batches, up to the bound."""
        begun = time.monotonic()
        self.publish()
        published = time.monotonic()
        rest = math.ceil((self.run.progress.total - self.run.progress.step) / self.per_rollout) - 1
        for later in range(number, number + min(self.depth, max(0, rest)) + 1):
            if later not in self.queue:
                self._issue(later)
        issued = self.queue[number]
        own = self.generator.abilities.own_weights
        items = answer(self.run.compute, issued.orders, issued.calls, lambda call: self._result(call, issued), own)
        del self.queue[number]
        found = {"weights_seconds": published - begun, "generation_seconds": time.monotonic() - begun}
        found |= self._guesses()
        if self.depth:
            found["generator_idle_seconds"], self._idle = self._idle, 0.0
        return items, found

    def _guesses(self) -> dict[str, float]:
        """Return the share of guessed tokens that were right since the last call, with speculative decoding."""
        if self.run.plan.settings.generation.speculate == "off":
            return {}
        facts = self.generator.health().facts
        before, self._guessed = self._guessed, (facts.get("speculated_tokens", 0), facts.get("accepted_tokens", 0))
        tried = self._guessed[0] - before[0]
        return {"accepted_share": (self._guessed[1] - before[1]) / tried} if tried > 0 else {}

    def answers(self, orders: list[PromptRequest], sampling: Sampling) -> list[Rollout]:
        """Return rollouts of the current policy while the trainer waits; they do not enter the ledger."""
        self.publish()
        calls = generate_calls(self.run.compute.strategy.scatter(orders), sampling, self.player)
        return answer(self.run.compute, orders, calls, self._result, self.generator.abilities.own_weights)

    def _issue(self, number: int) -> None:
        orders, settings = self.orders_of(number), self.run.plan.settings
        line = self.ledger.issue(number, [order.index for order in orders])
        if line is not None:
            self.run.outputs.directory.ledger({"step": self.run.progress.step + 1, **line})
        stop = tuple(settings.sampling.stop or ())
        sampling = Sampling(
            settings.data.max_new_tokens,
            settings.sampling.temperature,
            settings.sampling.top_p,
            settings.sampling.top_k,
            stop,
        )
        self.queue[number] = PendingBatch(
            orders, generate_calls(self.run.compute.strategy.scatter(orders), sampling, self.player)
        )
        self._submit(self.queue[number])

    def _submit(self, issued: PendingBatch) -> None:
        """Submit all calls that are not running, or whose generator was lost."""
        if self._pool is None:
            return
        if self._idle_since is not None:
            self._idle += time.monotonic() - self._idle_since
            self._idle_since = None
        for call in issued.calls:
            known = issued.futures.get(call)
            if call.by_policy and (known is None or (known.done() and known.exception() is not None)):
                issued.futures[call] = self._pool.submit(call.run, self.generator)
                issued.futures[call].add_done_callback(self._note_idle)

    def _note_idle(self, _: Future[list[list[Completion]]]) -> None:
        if all(future.done() for issued in list(self.queue.values()) for future in list(issued.futures.values())):
            self._idle_since = time.monotonic()

    def _result(self, call: GenerateCall, issued: PendingBatch | None = None) -> list[list[Completion]]:
        """Return the completions of one call. A lost generator is restarted and gets all open calls again."""
        while True:
            try:
                if issued is not None and call in issued.futures:
                    found = issued.futures[call].result()
                else:
                    with (
                        self.run.compute.autocast()
                    ):  # the sampler computes as the trainer does, or log-probs would differ
                        found = call.run(self.generator)
                self._failed_restarts = 0
                return found
            except GeneratorLost as lost:
                if self.generator.health().alive:  # the failed call had gone to an earlier generator
                    self._count(lost)
                else:
                    self._revive(lost)
                self.publish()
                for other in self.queue.values():
                    self._submit(other)

    def _revive(self, lost: GeneratorLost) -> None:
        """Restart the generator. Raises GeneratorLost where restarts failed before, or where weights are sharded."""
        if (
            self.run.compute.strategy.shards_forward
        ):  # its new weights would need all ranks, and the others do not know of the loss
            raise lost
        self._count(lost)
        self.restarts += 1
        pending = sum(len(issued.orders) for issued in self.queue.values())
        evidence = {"restarts": self.restarts, "pending": pending}
        self.run.outputs.directory.event(
            "generator-lost", "warning", str(lost), evidence, "its prompts are asked for again"
        )
        self.run.outputs.say(f"{lost} It is started anew, and {pending} prompts are asked for again.")
        self.generator.revive()

    def _count(self, lost: GeneratorLost) -> None:
        if self._failed_restarts >= REVIVALS + self.depth:  # each call of the queue may report the same loss
            raise lost
        self._failed_restarts += 1

    def drop_unusable(self, items: list[Rollout]) -> tuple[list[Rollout], dict[int, str], dict[str, float]]:
        """Return the usable rollouts, the reason for each group that has none left, and metrics of staleness.

        No token may be older than the bound allows, and every log-prob has to be known (G16, G23).
        """
        kept: list[Rollout] = []
        why: dict[int, str] = {}
        ages: list[float] = []
        for item in items:
            lends = bool(item.baseline_column or item.opponent_column)
            completion = item.completion
            if item.source == "policy" and completion.versions is not None and len(completion.versions):
                age = (self.run.progress.step - int(completion.versions.min())) / self.per_rollout
                ages.append(age)
                if age > self.depth:
                    self._drop(item, STALE, why)
                    continue
            if item.source == "policy" and not lends and bool(completion.logps.isnan().any()):
                self._drop(item, UNKNOWN, why)
                continue
            kept.append(item)
        left = {item.group for item in kept}
        found: dict[str, float] = {}
        if self.depth and ages:
            found = {"sampler_staleness": sum(ages) / len(ages), "sampler_staleness_max": max(ages)}
        return kept, {group: reason for group, reason in why.items() if group not in left}, found

    def _drop(self, item: Rollout, reason: str, why: dict[int, str]) -> None:
        why[item.group] = reason
        self.ledger.lose(reason, len(item.completion.ids))

    def close(self) -> None:
        """Close the generator and cancel all open calls."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        self.generator.close()
