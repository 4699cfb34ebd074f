"""Evaluation of one model, or of two on the same prompts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from posttrain.assembly.objects import InMemory
from posttrain.errors import RewardError, SettingsError
from posttrain.evaluation.answers import Asked, score_answers
from posttrain.evaluation.likelihood import measure_preferences, measure_texts
from posttrain.evaluation.opened import opened, schema_of, sets_of, settings_of
from posttrain.evaluation.result import Evaluation, SetResult
from posttrain.evaluation.statistics import Comparison, compare_paired
from posttrain.settings import Settings

#: Figures for which lower is better.
LOW_IS_GOOD = ("loss", "perplexity", "cut_off")


def evaluate(
    model: str,
    given: dict[str, Any],
    objects: InMemory,
    asked: Asked,
    against: str | None = None,
    say: Callable[[str], None] = print,
) -> Evaluation:
    """Measure ``model`` on every set of rows, and ``against`` on the same ones. Raises PosttrainError.

    ``given`` are options of a run by name; a run directory supplies its own for those that are not given.
    """
    asked.check()
    settings = settings_of(model, given)
    other = None if against is None else settings.replace(model=settings_of(against, {}).model.model)
    if other is None and (settings.rollouts.judge or objects.judge is not None):
        raise SettingsError("A judge compares two models. Name the second one: --against MODEL")
    found = Evaluation(model, {}, against, asked=_as_asked(settings.flat(), asked))
    for name, own in sets_of(settings, objects).items():
        schema = schema_of(own.data, own.rollouts, own.episodes, objects)
        say(f"{model}: {name or 'data'}")
        found.sets[name], prefer = _measured(own, objects, schema, asked, say)
        if other is None:
            continue
        say(f"{against}: {name or 'data'}")
        found.others[name], _ = _measured(own.replace(model=other.model.model), objects, schema, asked, say)
        found.comparisons[name] = compare(found.sets[name], found.others[name], prefer)
    return found


def _as_asked(settings: dict[str, Any], asked: Asked) -> dict[str, Any]:
    names = ("data", "reward", "environment", "max_new_tokens", "system_prompt", "generation", "seed", "limit")
    return {**vars(asked), **{name: settings[name] for name in names if settings[name] is not None}}


def _measured(
    settings: Settings, objects: InMemory, schema: str, asked: Asked, say: Callable[[str], None]
) -> tuple[SetResult, Callable[..., list[float | None]] | None]:
    """Return the figures of one model, and the judge of the set, which outlives the model."""
    with opened(settings, objects, schema) as model:
        if model.rewarded:
            return score_answers(model, asked, say), model.data.judge
        if schema == "preference":
            return measure_preferences(model, model.run.plan.card.needs_now("reward-head", None)), None
        return measure_texts(model), None


def compare(
    first: SetResult, second: SetResult, judge: Callable[..., list[float | None]] | None = None
) -> dict[str, Comparison]:
    """Compare every figure that both have, prompt by prompt; with ``judge`` also whose answers it prefers."""
    found = {
        name: compare_paired(values, second.values[name])
        for name, values in first.values.items()
        if name in second.values and len(values) == len(second.values[name])
    }
    if judge is not None:
        found["preferred"] = _judged(first, second, judge)
    return found


def _judged(first: SetResult, second: SetResult, judge: Callable[..., list[float | None]]) -> Comparison:
    """Return by prompt how often the first model's answers are preferred to the second's, minus one half."""
    chances = judge(
        [line["text"] for line in first.lines],
        [line["completion"] for line in first.lines],
        [line["completion"] for line in second.lines],
        *([[[image.picture() for image in own] for own in first.images]] if any(first.images) else []),
    )
    by_prompt: dict[int, list[float]] = {}
    for line, chance in zip(first.lines, chances, strict=True):
        if chance is not None:
            by_prompt.setdefault(line["prompt"], []).append(chance)
            line["preferred"] = chance
    if not by_prompt:
        raise RewardError("The judge could not say of any pair which answer is better.")
    unsaid = sum(chance is None for chance in chances)
    if unsaid:
        first.notes.append(f"the judge could not say of {unsaid} of {len(chances)} pairs; they are left out")
    means = [sum(values) / len(values) for values in by_prompt.values()]
    return compare_paired(means, [1 - value for value in means])
