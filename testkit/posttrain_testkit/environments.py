"""Checks of environments by playing them: the same episode again, alone and beside others.

The turns are made up here; nothing is sampled.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from typing import Any

from posttrain.contract.images import portable_value
from posttrain.environments.environment import Observation, begin, close, observation_of, tools_of

from posttrain_testkit.registry import CheckFailed

#: Number of compared episodes, and most turns of each.
EPISODES, TURNS = 3, 6


def check_environment(
    kind: Callable[[], Any],
    rows: list[dict[str, Any]] | None = None,
    make_rows: Callable[..., list[dict[str, Any]] | None] | None = None,
) -> dict[str, Any]:
    """Play episodes of ``kind``; return a report. Raises CheckFailed with the broken property and its usual cause.

    ``rows`` are needed where the environment makes none; ``make_rows(size, seed)`` makes them [``kind.rows``].
    """
    rows = rows or _rows(make_rows or getattr(kind, "rows", None))
    scripts = [_script(kind, place) for place in range(EPISODES)]
    tasks = [rows[place % len(rows)] for place in range(EPISODES)]
    alone = [_play(kind(), row, script) for row, script in zip(tasks, scripts, strict=True)]
    again = [_play(kind(), row, script) for row, script in zip(tasks, scripts, strict=True)]
    if alone != again:
        raise CheckFailed(
            "The same row, seed and turns gave another episode the second time.",
            "Usual cause: random numbers or a clock that reset does not set from its seed.",
        )
    if (beside := _interleaved(kind, tasks, scripts)) != alone:
        place = next(i for i, (one, other) in enumerate(zip(alone, beside, strict=True)) if one != other)
        raise CheckFailed(
            f"Episode {place + 1} went otherwise beside the others than alone.",
            "Usual cause: state in the class or the module. It belongs in self, set by reset.",
        )
    game = kind()
    twice = [_play(game, row, script, ends=False) for row, script in zip(tasks, scripts, strict=True)]
    close(game)
    if twice != alone:
        raise CheckFailed(
            "An episode after another one in the same object went otherwise than in a new one.",
            "Usual cause: reset leaves something of the last episode.",
        )
    return {"episodes": EPISODES, "tools": [one["function"]["name"] for one in _tools(kind)], "rows": len(rows)}


def _rows(make: Callable[..., list[dict[str, Any]] | None] | None) -> list[dict[str, Any]]:
    found = make(size=EPISODES, seed=0) if make is not None else None
    if make is None or not found:
        raise CheckFailed("The environment makes no rows, and none were given.", "Give some: --data FILE")
    if found != make(size=EPISODES, seed=0):
        raise CheckFailed(
            "rows(size, seed) gave others the second time.", "Usual cause: random numbers without the seed."
        )
    for row in found:
        if "prompt" not in row:
            raise CheckFailed(f"A row has no column 'prompt': {str(row)[:80]}.", "Every task is asked in words.")
    try:
        json.dumps(portable_value(found))
    except (TypeError, ValueError) as error:
        raise CheckFailed(f"The rows cannot be written as JSON: {error}.", "Rows are data, as in a file.") from None
    return found


def _tools(kind: Any) -> list[dict[str, Any]]:
    game = kind()
    found = tools_of(game)
    close(game)
    return found


def _script(kind: Any, place: int) -> list[dict[str, Any]]:
    """Write turns of a model that calls each tool, rightly and wrongly, and then answers."""
    dice = random.Random(place)
    turns: list[dict[str, Any]] = []
    for one in _tools(kind):
        function = one["function"]
        needs = function.get("parameters", {}).get("properties", {})
        arguments = {name: _value(about.get("type"), dice) for name, about in needs.items()}
        for given in (arguments, {}, {"nonsense": None}):
            turns.append(_calls(function["name"], given))
    turns.append(_calls("no_such_tool", {}))
    words = ("", "7", "yes", "The answer is 12.", "up", "\N{SNOWMAN}")
    return [*turns, *({"role": "assistant", "content": dice.choice(words)} for _ in range(TURNS))]


def _calls(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    call = {"type": "function", "id": "call00000", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def _value(kind: Any, dice: random.Random) -> Any:
    return {"integer": dice.randint(0, 9), "number": dice.random(), "boolean": True, "array": [], "object": {}}.get(
        kind if isinstance(kind, str) else "string", "a word"
    )


def _play(game: Any, row: dict[str, Any], script: list[dict[str, Any]], ends: bool = True) -> list[Any]:
    seen: list[Any] = [portable_value(begin(game, dict(row), 7))]
    for turn in script:
        found = _step(game, turn)
        seen.append((portable_value(found.messages), found.reward, found.done))
        if found.done:
            break
    if ends:
        close(game)
    return seen


def _interleaved(kind: Any, tasks: list[dict[str, Any]], scripts: list[list[dict[str, Any]]]) -> list[list[Any]]:
    games = [kind() for _ in tasks]
    seen: list[list[Any]] = [
        [portable_value(begin(game, dict(row), 7))] for game, row in zip(games, tasks, strict=True)
    ]
    going = set(range(len(games)))
    for turn in range(max(map(len, scripts))):
        for place in sorted(going):
            if turn >= len(scripts[place]):
                continue
            found = _step(games[place], scripts[place][turn])
            seen[place].append((portable_value(found.messages), found.reward, found.done))
            if found.done:
                going.discard(place)
    for game in games:
        close(game)
    return seen


def _step(game: Any, turn: dict[str, Any]) -> Observation:
    try:
        found = observation_of(game.step(json.loads(json.dumps(turn))), "step")
    except Exception as error:
        raise CheckFailed(
            f"step raised {type(error).__name__}: {error} on the turn {json.dumps(turn)[:120]}.",
            "What a model writes may be anything: answer it, or end the episode.",
        ) from error
    if found.reward is not None and not math.isfinite(found.reward):
        raise CheckFailed(f"A turn was worth {found.reward}.", "Rewards are finite numbers, or None.")
    return found
