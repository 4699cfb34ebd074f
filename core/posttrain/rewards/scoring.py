"""Calling rewards on a batch of completions, and checking what they return."""

from __future__ import annotations

import asyncio
import math
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from posttrain.errors import PosttrainError, RewardError, RunFailed
from posttrain.rewards.reward import Reward

if TYPE_CHECKING:
    from torch import Tensor

#: Scores beyond this are infinite in float32.
LARGEST = 3e38


def score(
    rewards: list[Reward],
    prompts: list[Any],
    completions: list[str],
    columns: dict[str, list[Any]],
    remarks: dict[str, list[Any]] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Score ``B`` completions: ``(total (B,), {name: scores (B,)})``, both float32.

    ``total`` is the weighted sum over the rewards that gave a number; NaN marks None, in ``total`` that every reward
    said None. A reward that returns ``(scores, columns)`` has more to say of the completions, such as feedback in
    words: the columns, one value a completion, are put into ``remarks``. Async rewards are awaited together, also
    where an event loop is already running. Raises RewardError for a result of the wrong shape or type, RunFailed for
    an exception or a score that is not finite.
    """
    import torch

    available = {**columns, "prompts": prompts, "completions": completions}
    results: dict[str, list[float]] = {}
    waiting = []
    for reward in rewards:
        positional, named = reward.arguments(available)
        if reward.async_:
            waiting.append((reward, reward.function, positional, named))
        else:
            try:
                result = reward.function(*positional, **named)
            except Exception as error:
                raise _failure(reward, error, len(completions)) from error
            results[reward.name] = _checked(reward, _scores(reward, result, len(completions), remarks), completions)
    for (reward, *_), result in zip(waiting, _await_all(waiting), strict=True):
        if isinstance(result, BaseException):
            raise _failure(reward, result, len(completions)) from result
        results[reward.name] = _checked(reward, _scores(reward, result, len(completions), remarks), completions)

    total = [math.nan] * len(completions)
    for reward in rewards:
        for row, value in enumerate(results[reward.name]):
            if not math.isnan(value):
                total[row] = (0.0 if math.isnan(total[row]) else total[row]) + reward.weight * value
    by_name = {reward.name: torch.tensor(results[reward.name], dtype=torch.float32) for reward in rewards}  # (B,) each
    return torch.tensor(total, dtype=torch.float32), by_name  # (B,)


def _scores(reward: Reward, result: Any, count: int, remarks: dict[str, list[Any]] | None) -> Any:
    """The scores of a result; columns that came with them go into ``remarks``."""
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
        return result
    for name, values in result[1].items():
        if not isinstance(values, list) or len(values) != count:
            raise RewardError(
                f"Reward '{reward.name}' returned {_short(values)} for its column '{name}', expected a list with one "
                f"value for each of the {count} completions."
            )
        if remarks is not None:
            remarks[name] = values
    return result[0]


def _await_all(calls: list[tuple[Any, ...]]) -> list[Any]:
    """Results or exceptions of all async calls, run together in one event loop."""
    if not calls:
        return []

    async def call(function: Any, positional: list[Any], named: dict[str, Any]) -> Any:
        return await function(*positional, **named)

    async def gather() -> list[Any]:
        return await asyncio.gather(*(call(*rest) for _, *rest in calls), return_exceptions=True)

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(gather())
    # The loop of this thread, a notebook's, is busy: another thread can have its own.
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(asyncio.run, gather()).result()


def _failure(reward: Reward, error: BaseException, count: int) -> BaseException:
    """The error to raise for an exception inside a reward: its own if it already says what to do."""
    if isinstance(error, PosttrainError):
        return error
    text = " ".join(str(error).split()) or "no message"
    return RunFailed(
        f"Reward '{reward.name}' raised {type(error).__name__}{_place(error)} on a batch of {count} completions: "
        f"{text}. A reward returns None for a completion that it cannot judge."
    )


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""


def _checked(reward: Reward, result: Any, completions: list[str]) -> list[float]:
    """The result as floats, NaN for None."""
    # Tensors and arrays of any library
    values = result.tolist() if callable(getattr(result, "tolist", None)) else result
    if not isinstance(values, list | tuple):
        raise RewardError(
            f"Reward '{reward.name}' returned {_short(result)} ({type(result).__name__}), expected a list with a "
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
            f"Reward '{reward.name}' returned {_short(value)} ({type(value).__name__}) for completion {row}, expected "
            "a number or None."
        )
    if not abs(value) <= LARGEST:
        raise RunFailed(
            f"Reward '{reward.name}' returned {value} for completion {row} ({_short(completion)}). A score is a finite "
            "number; return None for a completion that cannot be judged."
        )
    return float(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
