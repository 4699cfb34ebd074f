"""Scored answers of a model to the prompts of a set, with the generator, templates and rewards of a run."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from posttrain.contract.generation import Sampling
from posttrain.contract.images import printable_value
from posttrain.contract.planning import SampleRequest
from posttrain.contract.rollout import Rollout
from posttrain.errors import SettingsError
from posttrain.evaluation.result import SetResult
from posttrain.evaluation.statistics import pass_at_k
from posttrain.rollouts.collect import Collector
from posttrain.rollouts.requests import PromptRequest, give_rewards
from posttrain.rollouts.seeds import seed_of
from posttrain.rollouts.source import Online

if TYPE_CHECKING:
    from posttrain.evaluation.opened import Opened

#: Prompts that are answered at one time; between them the command reports its progress.
AT_ONCE = 256


@dataclasses.dataclass(frozen=True)
class Asked:
    """Options of sampling: ``samples`` answers a prompt, greedy where the temperature is 0."""

    samples: int = 1
    temperature: float = 0.0
    k: tuple[int, ...] = ()
    """Values of k for pass@k, the chance that one of k answers is right."""
    right_at: float | None = None
    """Least reward of a right answer; None: 1 where all rewards are 0 or 1, else no answer counts as right."""

    def check(self) -> None:
        """Raise SettingsError for contradictory options."""
        if self.samples < 1:
            raise SettingsError(f"samples is {self.samples}, expected at least 1.")
        if self.temperature < 0 or not math.isfinite(self.temperature):
            raise SettingsError(f"temperature is {self.temperature}, expected 0 (the likeliest answer) or more.")
        if self.samples > 1 and self.temperature == 0:
            raise SettingsError(
                f"samples is {self.samples} and temperature is 0: all answers to a prompt would be the same. "
                "Add --temperature 1, or leave out --samples."
            )
        wrong = next((k for k in self.k if not 1 <= k <= self.samples), None)
        if wrong is not None:
            raise SettingsError(f"k is {wrong}, expected 1 to the number of samples, {self.samples}: --samples N")


def score_answers(opened: Opened, asked: Asked, say: Any) -> SetResult:
    """Generate and score answers to every prompt of the set; return the means over prompts."""
    run, data = opened.run, opened.data
    assert isinstance(run.source, Online)  # rows of prompts always give this source
    generator, player = run.source.collector.producer.generator, run.source.collector.producer.player
    collector = Collector(run, data.train, generator, data.rewards, data.judge, player)
    seed = run.plan.settings.data.seed
    groups: list[list[Rollout]] = []
    for start in range(0, len(data.train), AT_ONCE):
        places = range(start, min(start + AT_ONCE, len(data.train)))
        groups += _answered(collector, list(places), asked, seed)
        if len(data.train) > AT_ONCE:
            say(f"{places.stop} of {len(data.train)} prompts answered")
    rewarded = bool(data.rewards) or player is not None
    if rewarded:
        give_rewards(run.compute, data.rewards, [item for group in groups for item in group])
    return _result(groups, asked, rewarded)


def _answered(collector: Collector, places: list[int], asked: Asked, seed: int) -> list[list[Rollout]]:
    settings = collector.run.plan.settings
    greedy = asked.temperature == 0
    orders = [
        PromptRequest(
            place,
            index,
            collector.prompts[index],
            [SampleRequest(asked.samples, greedy=greedy)],
            # both models answer a prompt with the same random numbers
            [[seed_of(seed, "evaluation", index, number) for number in range(asked.samples)]],
        )
        for place, index in enumerate(places)
    ]
    drawn = settings.sampling
    sampling = Sampling(
        settings.data.max_new_tokens,
        asked.temperature or 1.0,
        drawn.top_p,
        drawn.top_k,
        tuple(drawn.stop or ()),
        greedy,
    )
    groups: list[list[Rollout]] = [[] for _ in places]
    for item in collector.producer.answers(orders, sampling):
        groups[item.group].append(item)
    return groups


def _result(groups: list[list[Rollout]], asked: Asked, rewarded: bool) -> SetResult:
    result = SetResult("answers", len(groups))
    items = [item for group in groups for item in group]
    for number, group in enumerate(groups):
        result.lines += [_line(number, item, rewarded) for item in group]
        result.images += [item.pictures for item in group]
    result.add("length", [_mean([float(len(item.completion.ids)) for item in group]) for group in groups])
    result.add(
        "cut_off", [_mean([float(not item.completion.finished) for item in group]) for group in groups], share=True
    )
    if not rewarded:
        return result
    unscored = sum(item.reward != item.reward for item in items)
    if unscored:
        result.notes.append(f"{unscored} of {len(items)} answers got no score from any reward; they count as 0")
    scores = [[item.reward if item.reward == item.reward else 0.0 for item in group] for group in groups]
    result.add("reward", [_mean(group) for group in scores])
    names = sorted({name for item in items for name in item.parts})
    if len(names) > 1:
        for name in names:
            parts = [[item.parts.get(name, math.nan) for item in group] for group in groups]
            result.add(f"reward_{name}", [_mean([v if v == v else 0.0 for v in group]) for group in parts])
    least = asked.right_at
    if least is None and all(value in (0.0, 1.0) for group in scores for value in group):
        least = 1.0
    if least is None and asked.k:
        raise SettingsError(
            "pass@k needs to know which answers are right, and these rewards are not 0 or 1. Name the reward from "
            "which on an answer is right: --right-at 0.5"
        )
    if least is not None:
        right = [sum(value >= least for value in group) for group in scores]
        result.add("right", [count / asked.samples for count in right], share=True)
        for k in asked.k:
            result.add(f"pass@{k}", [pass_at_k(asked.samples, count, k) for count in right], share=True)
    return result


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _line(number: int, item: Rollout, rewarded: bool) -> dict[str, Any]:
    line: dict[str, Any] = {
        "prompt": number,
        "text": item.columns.get("prompt_text", printable_value(item.columns.get("prompt"))),
        "completion": item.completion.text,
        "tokens": len(item.completion.ids),
        "finished": item.completion.finished,
    }
    if rewarded:
        line |= {"reward": item.reward if item.reward == item.reward else None, "parts": item.parts}
    if item.completion.episode is not None:
        line["messages"] = printable_value(item.completion.episode.messages)
    return line
