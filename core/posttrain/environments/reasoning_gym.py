"""Tasks of the package reasoning-gym as data and reward in one: ``reasoning-gym:chain_sum?size=500&seed=1``.

A row stores the recipe of its problem, not the problem: JSON would turn the tuples inside some entries into lists,
which their scorers count as wrong. The generators are deterministic, so the entry can be made again.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import zlib
from typing import Any
from urllib.parse import unquote

from posttrain.errors import DependencyError, RewardError, SettingsError, closest

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
#: Errors of scorers on answers that are not of the right form. Such an answer is wrong.
_MALFORMED = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, SyntaxError, RecursionError)


def rows(spec: str) -> list[dict[str, Any]]:
    """Make the rows of ``"task?option=value&size=500&seed=1"``: columns prompt, answer and reasoning_gym.

    Size is 500 and seed 0 if not given; the other options are the task's own. ``answer`` is None for tasks with many
    right answers. Raises SettingsError for an unknown task or option, DependencyError without the package.
    """
    task, _, query = spec.partition("?")
    options = dict(sorted({"size": 500, "seed": 0, **_options(spec, query)}.items()))
    dataset = _dataset(task, json.dumps(options))
    result = []
    for index in range(len(dataset)):
        entry = dataset[index]
        recipe = {"task": task, "options": options, "index": index, "check": _check(entry)}
        answer = None if entry["answer"] is None else str(entry["answer"])
        result.append({"prompt": entry["question"], "answer": answer, "reasoning_gym": json.dumps(recipe)})
    return result


def reasoning_gym(completions: list[str], reasoning_gym: list[str | None]) -> list[float | None]:
    """Score the text of the last ``<answer>`` tag, else the whole completion, with the task's own ``score_answer``.

    None where the row does not come from reasoning-gym.
    """
    scores: list[float | None] = []
    for completion, recipe in zip(completions, reasoning_gym, strict=True):
        scores.append(None if recipe is None else _score(completion, recipe))
    return scores


def _score(completion: str, recipe: str) -> float:
    try:
        made = json.loads(recipe)
        dataset, entry = _entry(made["task"], json.dumps(made["options"]), made["index"])
        same = _check(entry) == made["check"]
    except (json.JSONDecodeError, KeyError, TypeError):
        raise RewardError(
            f"column 'reasoning_gym' holds {recipe!r:.80}, which no row of reasoning-gym:TASK holds. "
            "Use such rows as data, or another reward."
        ) from None
    if not same:
        raise RewardError(
            f"Row {made['index']} of reasoning-gym:{made['task']} was made by another version of reasoning-gym. "
            "Make the data again."
        )
    answers = _ANSWER.findall(completion)
    try:
        return float(dataset.score_answer((answers[-1] if answers else completion).strip(), entry))
    except _MALFORMED:
        return 0.0


def _check(entry: dict[str, Any]) -> int:
    return zlib.crc32(entry["question"].encode())


def _options(spec: str, query: str) -> dict[str, Any]:
    """Parse ``a=1&b=[2,3]&c=text`` as values: JSON where it is valid JSON, else text."""
    options: dict[str, Any] = {}
    for part in query.split("&") if query else []:
        name, equals, text = part.partition("=")
        if not equals or not name:
            raise SettingsError(f"reasoning-gym:{spec}: '{part}' is not of the form OPTION=VALUE.")
        try:
            options[name] = json.loads(unquote(text))
        except json.JSONDecodeError:
            options[name] = {"True": True, "False": False, "None": None}.get(text, unquote(text))
    return options


@functools.lru_cache(maxsize=1024)
def _entry(task: str, options: str, index: int) -> tuple[Any, dict[str, Any]]:
    """Return the generator and its problem ``index``, which all completions of a group share."""
    dataset = _dataset(task, options)
    return dataset, dataset[index]


@functools.lru_cache(maxsize=64)
def _dataset(task: str, options: str) -> Any:
    """Return the generator of ``task`` with ``options`` (JSON)."""
    try:
        from reasoning_gym.factory import DATASETS, create_dataset
    except ImportError:
        raise DependencyError(
            "reasoning-gym tasks need the package reasoning-gym. Install it with: pip install 'posttrain[reasoning]'"
        ) from None
    if task not in DATASETS:
        raise SettingsError(
            f"reasoning-gym has no task '{task}'.{closest(task, list(DATASETS))} All tasks: "
            'python -c "import reasoning_gym.factory as f; print(*sorted(f.DATASETS))"'
        )
    given = json.loads(options)
    known = [field.name for field in dataclasses.fields(DATASETS[task][1])]
    for name in given:
        if name not in known:
            raise SettingsError(
                f"reasoning-gym task '{task}' has no option '{name}'.{closest(name, known)} It has: {', '.join(known)}."
            )
    try:
        return create_dataset(task, **given)
    except (AssertionError, ValueError, TypeError) as error:
        raise SettingsError(f"reasoning-gym task '{task}' refuses its options: {error}.") from None
