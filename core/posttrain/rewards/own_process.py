"""Rewards in separate processes (``--reward-process``): one that hangs is killed, one that dies ends nothing else.

Messages are JSON. All rewards of a run work at the same time.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable
from typing import Any

from posttrain.errors import RewardError, RunFailed
from posttrain.rewards.blame import Batch, find_rows
from posttrain.rewards.guard import GRACE
from posttrain.servers.forks import Child, Forks, ProcessLost


class OwnProcess:
    """A reward by name or file, loaded and called in another process, which ``begin`` starts."""

    def __init__(self, spec: str, name: str):
        self.spec, self.name = spec, name
        self._forks: Forks | None = None
        self._child: Child | None = None
        self._limit: float | None = None

    def begin(self, name: str, options: dict[str, Any], limit: float | None) -> None:
        """Load the reward under its name in the run. Raises the errors of loading: RewardError, SettingsError."""
        self.name, self._limit = name, limit
        given = {f"{self.spec_name}.{option}": value for option, value in options.items()}
        try:
            self._forks = Forks(f"{__name__}:load", {"spec": self.spec, "options": given, "limit": limit})
        except (ProcessLost, TimeoutError) as error:
            raise RewardError(f"Reward '{name}' cannot be loaded in a process of its own: {error}.") from None
        parameters = [
            inspect.Parameter(
                one, inspect.Parameter.KEYWORD_ONLY, default=None if optional else inspect.Parameter.empty
            )
            for one, optional in self._forks.facts["parameters"]
        ]
        if self._forks.facts["open"]:
            parameters.append(inspect.Parameter("columns", inspect.Parameter.VAR_KEYWORD))
        self.__signature__ = inspect.Signature(parameters)

    @property
    def spec_name(self) -> str:
        """Name of the reward where it is loaded alone."""
        return self.spec.rpartition(":")[2] if ".py:" in self.spec else self.spec

    async def __call__(self, **available: list[Any]) -> Any:
        """Return ``(scores, columns)``. Raises RunFailed with the row at which a reward hangs or ends its process."""
        return await asyncio.to_thread(self._scores, available)

    def _scores(self, available: dict[str, list[Any]]) -> Any:
        limit = None if self._limit is None else self._limit + GRACE / 2
        from posttrain.contract.images import portable_value  # imports torch, and listing rewards does not

        available = portable_value(available)  # images become data URLs
        if self._child is None:
            self._child = self._new()
        try:
            found = self._child.ask(available, limit)
        except (ProcessLost, TimeoutError) as error:
            self._child = None
            raise self._failure(error, available) from None
        except TypeError as error:
            raise RewardError(f"The columns cannot be sent to the process of reward '{self.name}': {error}.") from None
        return [None if math.isnan(score) else score for score in found["scores"]], found["columns"]

    def _new(self) -> Child:
        assert self._forks is not None
        try:
            return self._forks.child()
        except ProcessLost as error:
            raise RunFailed(f"Reward '{self.name}' has no process any more: {error}.") from None

    def _failure(self, error: Exception, available: dict[str, list[Any]]) -> RunFailed:
        count = len(next(iter(available.values()), []))
        texts = available.get("completions") or [""] * count
        batch = Batch("completion", texts, available.get("prompts") or [""] * count, lambda rows: None)

        def ends(rows: range, seconds: float) -> bool:
            child = self._new()
            try:
                child.ask({name: values[rows.start : rows.stop] for name, values in available.items()}, seconds)
            except (ProcessLost, TimeoutError):
                return True
            except Exception:
                return False
            finally:
                child.close()
            return False

        where = batch.name(find_rows(ends, count))
        if isinstance(error, TimeoutError):
            return RunFailed(
                f"Reward '{self.name}' has not returned after {self._limit:g} seconds and could not be interrupted "
                f"{where}; its process was killed. Give it more time with --reward-timeout SECONDS; 0 sets no limit."
            )
        return RunFailed(f"Reward '{self.name}' ended its process {where}. A reward returns; it ends nothing.")


def load(payload: dict[str, Any]) -> tuple[Any, Callable[[], Callable[[Any], Any]]]:
    """Load a reward in this process; a Loader of ``posttrain.servers.forks``."""
    from posttrain.rewards.load import load_rewards
    from posttrain.rewards.reward import STANDARD
    from posttrain.rewards.scoring import raw_scores

    (reward,) = load_rewards([payload["spec"]], payload["options"], limit=payload["limit"])
    signature = inspect.signature(reward.function)
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
    takes = [one for one in signature.parameters.values() if one.kind in kinds]
    if any(one.name == "tokenizer" for one in takes):
        raise RewardError(
            f"Reward '{reward.name}' takes the run's tokenizer, which stays in the trainer's process. Leave out "
            "--reward-process, or the parameter 'tokenizer'."
        )
    bound = getattr(reward.function, "keywords", {})
    parameters = [(one.name, one.default is not one.empty) for one in takes if one.name not in bound]
    parameters += [(name, True) for name in STANDARD if name not in dict(parameters)]

    def answer(available: dict[str, list[Any]]) -> dict[str, Any]:
        remarks: dict[str, list[Any]] = {}
        if "images" in available:
            from posttrain.contract.images import open_picture

            available["images"] = [[open_picture(one) for one in own] for own in available["images"]]
        return {"scores": raw_scores(reward, available, remarks), "columns": remarks}

    is_open = any(one.kind is one.VAR_KEYWORD for one in signature.parameters.values())
    return {"parameters": parameters, "open": is_open}, lambda: answer
