"""Evaluation of online methods on held-out prompts: the reward of greedy completions, or the method's own loss."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from posttrain.contract.generation import Sampling
from posttrain.contract.planning import SampleRequest
from posttrain.contract.rollout import Rollout, Rollouts
from posttrain.contract.views import Step
from posttrain.rollouts.collect import Collector
from posttrain.rollouts.requests import PromptRequest, give_rewards, reward_metrics
from posttrain.training.step import evaluate_loss

if TYPE_CHECKING:
    from posttrain.training.run import Compute, Plan, Progress


class GreedyAnswers:
    """Mean reward of one greedy completion a prompt; for methods without rewards the mean loss on the completions.

    The loss is computed on the data's own answers where the rows have them, since those stay the same.
    """

    def __init__(self, collector: Collector, limit: int | None):
        self.collector = collector
        count = len(collector.prompts)
        self.indices = list(range(count if limit is None else min(limit, count)))

    def __call__(self, compute: Compute, progress: Progress) -> dict[str, float]:
        """Return reward and its parts, or loss and the method's metrics; lengths and the truncated share."""
        found: dict[str, float] = {}
        if self.collector.rewards or self.collector.producer.player is not None:
            items = self._answers(compute.plan, SampleRequest(greedy=True))
            give_rewards(compute, self.collector.rewards, items)
            items = [item for item in items if item.reward == item.reward]
            rewards = torch.tensor([item.reward for item in items])
            found = reward_metrics(rewards, Rollouts(items, lambda *_: []))
        elif compute.teacher is not None:
            has_answers = all(self.collector.prompts[i].columns.get("completion") for i in self.indices)
            asked = SampleRequest(source="data") if has_answers else SampleRequest(greedy=True)
            found = self._loss(compute, Step(progress.step, progress.total), self._answers(compute.plan, asked))
        return {name: value for name, value in found.items() if not name.startswith(("reward_std", "zero_spread"))}

    def _answers(self, plan: Plan, ask: SampleRequest) -> list[Rollout]:
        settings = plan.settings
        orders = [
            PromptRequest(place, i, self.collector.prompts[i], [ask], [[0]]) for place, i in enumerate(self.indices)
        ]
        sampling = Sampling(settings.data.max_new_tokens, stop=tuple(settings.sampling.stop or ()))
        return self.collector.producer.answers(orders, sampling)

    def _loss(self, compute: Compute, step: Step, items: list[Rollout]) -> dict[str, float]:
        for item in items:
            item.reward = 0.0
        state = copy.deepcopy(compute.state)
        examples = self.collector.examples_of(items)
        compute.state.clear()
        compute.state.update(state)  # an evaluation must not change the training (D3)
        outcome = evaluate_loss(compute, compute.strategy.scatter(examples), step)
        terms = outcome.terms if len(outcome.terms) > 1 else {}
        return {"loss": outcome.loss, **terms, **outcome.metrics}
