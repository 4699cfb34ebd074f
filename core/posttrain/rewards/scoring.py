"""Calling rewards on a batch of completions, and checking their results."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from posttrain.errors import RewardError, RunFailed, short
from posttrain.rewards.blame import Batch, failure
from posttrain.rewards.guard import Broken, TimedOut, broken, guarded, in_thread
from posttrain.rewards.process import Own
from posttrain.rewards.reward import Reward

if TYPE_CHECKING:
    from torch import Tensor

#: Methods that scale by the spread square it, which must be finite in float32.
LARGEST = 1e18


def score(
    rewards: list[Reward],
    prompts: list[Any],
    completions: list[str],
    columns: dict[str, list[Any]],
    remarks: dict[str, list[Any]] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Score ``B`` completions: ``(total (B,), {name: scores (B,)})``, both float32.

    ``total`` is the weighted sum over the rewards that gave a number; NaN marks None, in ``total`` that every reward
    gave None. The columns of a reward that returns ``(scores, columns)``, such as feedback in words, one value a
    completion, are put into ``remarks``. Async rewards are awaited together, also where an event loop is already
    running. Raises RewardError for a result of the wrong shape or type, RunFailed for an exception, an attempt to end
    the process, an exceeded time limit, or a score that is not finite.
    """
    import torch

    available = {**columns, "prompts": prompts, "completions": completions}
    results = {reward.name: _plain(reward, available, remarks) for reward in rewards if not reward.async_}
    results |= _awaited([reward for reward in rewards if reward.async_], available, remarks)
    total = [math.nan] * len(completions)
    for reward in rewards:
        for row, value in enumerate(results[reward.name]):
            if not math.isnan(value):
                total[row] = (0.0 if math.isnan(total[row]) else total[row]) + reward.weight * value
    _check_sums(total, completions)
    by_name = {reward.name: torch.tensor(results[reward.name], dtype=torch.float32) for reward in rewards}  # (B,) each
    return torch.tensor(total, dtype=torch.float32), by_name  # (B,)


def raw_scores(reward: Reward, available: dict[str, list[Any]], remarks: dict[str, list[Any]] | None) -> list[float]:
    """Return one reward's scores of completions, NaN for None; the errors are those of ``score``."""
    if reward.async_:
        return _awaited([reward], available, remarks)[reward.name]
    return _plain(reward, available, remarks)


def _plain(reward: Reward, available: dict[str, list[Any]], remarks: dict[str, list[Any]] | None) -> list[float]:
    """Return the scores of a reward that is not async."""
    positional, named = reward.arguments(available)

    def call() -> list[float]:
        return _read(reward, reward.function(*positional, **named), available["completions"], remarks)

    try:
        return guarded(call, _title(reward), reward.limit, reward.own)
    except Broken as found:
        raise failure(_title(reward), found, _batch(reward, available), reward.limit) from found.error


def _awaited(
    rewards: list[Reward], available: dict[str, list[Any]], remarks: dict[str, list[Any]] | None
) -> dict[str, list[float]]:
    """Return the scores of async rewards, by name."""
    if not rewards:
        return {}
    arguments = [reward.arguments(available) for reward in rewards]

    async def ask(reward: Reward, positional: list[Any], named: dict[str, Any]) -> list[float]:
        return _read(reward, await reward.function(*positional, **named), available["completions"], remarks)

    calls = [(ask(reward, *given), reward.limit, reward.own) for reward, given in zip(rewards, arguments, strict=True)]
    results: dict[str, list[float]] = {}
    for reward, result in zip(rewards, await_all(calls, " and ".join(map(_title, rewards))), strict=True):
        if isinstance(result, Broken):
            raise failure(_title(reward), result, _batch(reward, available), reward.limit) from result.error
        results[reward.name] = result
    return results


def await_all(calls: list[tuple[Coroutine[Any, Any, Any], float | None, Own]], what: str) -> list[Any]:
    """Return the results of user code awaited together in one event loop; Broken where it raised or took too long.

    Also where an event loop is running already, as in a notebook. Each call comes with its limit in seconds.
    """

    async def one(call: Coroutine[Any, Any, Any], limit: float | None) -> Any:
        try:
            async with asyncio.timeout(limit) as clock:
                return await call
        except BaseException as error:
            if clock.expired() and error.__cause__ is not None:
                return Broken(TimedOut(), broken(error.__cause__).frames)
            return broken(error)

    async def gather() -> list[Any]:
        return await asyncio.gather(*(one(call, limit) for call, limit, _ in calls))

    limits = [limit for _, limit, _ in calls]
    # A coroutine that blocks the loop is interrupted like a plain function, a little later.
    longest = None if None in limits else max(limit for limit in limits if limit is not None) + 0.5
    try:
        return guarded(lambda: _run(gather(), longest), what, longest, calls[0][2])
    except Broken as found:
        return [found] * len(calls)


def _run(call: Coroutine[Any, Any, Any], limit: float | None = None) -> Any:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(call)
    # The loop of this thread, a notebook's, is busy: another thread can run one.
    return in_thread(lambda: asyncio.run(call), limit)


def _title(reward: Reward) -> str:
    return f"Reward '{reward.name}'"


def _batch(reward: Reward, available: dict[str, list[Any]]) -> Batch:
    def again(rows: range) -> Any:
        chosen = {name: values[rows.start : rows.stop] for name, values in available.items()}
        positional, named = reward.arguments(chosen)
        result = reward.function(*positional, **named)
        return _run(result) if reward.async_ else result

    return Batch("completion", available["completions"], available["prompts"], again)


def _read(reward: Reward, result: Any, completions: list[str], remarks: dict[str, list[Any]] | None) -> list[float]:
    """Return the scores of a result as floats, NaN for None; columns that came with them go into ``remarks``."""
    return _checked(reward, _scores(reward, result, len(completions), remarks), completions)


def _check_sums(total: list[float], completions: list[str]) -> None:
    for row, value in enumerate(total):
        if abs(value) > LARGEST:
            raise RunFailed(
                f"The weighted sum of the rewards is {value:g} for completion {row} ({short(completions[row])}), "
                f"expected at most {LARGEST:g}, whose square float32 can hold. Scale the scores or the weights."
            )


def _scores(reward: Reward, result: Any, count: int, remarks: dict[str, list[Any]] | None) -> Any:
    """Return the scores of a result; columns that came with them go into ``remarks``."""
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
        return result
    for name, values in result[1].items():
        if not isinstance(values, list) or len(values) != count:
            raise RewardError(
                f"Reward '{reward.name}' returned {short(values)} for its column '{name}', expected a list with one "
                f"value for each of the {count} completions."
            )
        if remarks is not None:
            remarks[name] = values
    return result[0]


def _checked(reward: Reward, result: Any, completions: list[str]) -> list[float]:
    """Check a result and return it as floats, NaN for None."""
    # Tensors and arrays of any library
    values = result.tolist() if callable(getattr(result, "tolist", None)) else result
    if not isinstance(values, list | tuple):
        raise RewardError(
            f"Reward '{reward.name}' returned {short(result)} ({type(result).__name__}), expected a list with a "
            f"number or None for each of the {len(completions)} completions."
        )
    if len(values) != len(completions):
        raise RewardError(f"Reward '{reward.name}' returned {len(values)} scores for {len(completions)} completions.")
    return [_number(reward, row, value, completions[row]) for row, value in enumerate(values)]


def _number(reward: Reward, row: int, value: Any, completion: str) -> float:
    if value is None:
        return math.nan
    if callable(getattr(value, "item", None)) and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if not isinstance(value, int | float):
        raise RewardError(
            f"Reward '{reward.name}' returned {short(value)} ({type(value).__name__}) for completion {row} "
            f"({short(completion)}), expected a number or None."
        )
    if abs(value) <= LARGEST:
        return float(value)
    finite = isinstance(value, int) or math.isfinite(value)
    raise RunFailed(
        f"Reward '{reward.name}' returned {short(value)} for completion {row} ({short(completion)}). A score is a "
        f"{f'number up to {LARGEST:g}, whose square float32 can hold' if finite else 'finite number'}; return None for "
        "a completion that cannot be judged."
    )
