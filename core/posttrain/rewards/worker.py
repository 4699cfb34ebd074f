"""Rewards as a role of their own: a small HTTP server that scores completions, and the reward that asks it.

The interface has a number, and both sides say theirs. ``GET /v1/health`` gives ``{"role": "rewards", "interface": 1,
"rewards": [NAMES]}``; ``POST /v1/score`` takes ``{"interface": 1, "prompts": [...], "completions": [...], "columns":
{NAME: [...]}}`` and gives ``{"scores": [number or null], "columns": {NAME: [...]}}``, the weighted sums.
Beyond its own machine a worker wants the token that both sides find in the environment.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from typing import Any

from posttrain.errors import PosttrainError, RewardError, short
from posttrain.rewards.reward import Reward
from posttrain.rewards.scoring import score
from posttrain.servers.endpoint import Endpoint, Refused, Unreachable, split_address
from posttrain.servers.listener import TOKEN, Handler, Listener, Unreadable

INTERFACE = 1


class ScoreServer(Listener):
    """Answers for ``rewards`` on ``host`` and ``port`` (0: a free one); ``serve_forever`` runs it."""

    def __init__(self, rewards: list[Reward], host: str, port: int, token: str | None = None):
        self.rewards = rewards
        super().__init__(_Handler, host, port, token)

    def health(self) -> dict[str, Any]:
        """Who this is."""
        return {"role": "rewards", "interface": INTERFACE, "rewards": [reward.name for reward in self.rewards]}

    def scores(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The answer to a question. Raises PosttrainError, and Unreadable for a question of another form."""
        if asked.get("interface") != INTERFACE:
            raise RewardError(
                f"This reward worker speaks interface {INTERFACE}, the question was asked in "
                f"{short(asked.get('interface'))}. Install the same posttrain on both sides."
            )
        prompts, completions, columns = (asked.get(name) for name in ("prompts", "completions", "columns"))
        if not (isinstance(prompts, list) and isinstance(completions, list) and isinstance(columns, dict)):
            raise Unreadable(400, "a question has the lists 'prompts' and 'completions' and the object 'columns'")
        if not all(isinstance(completion, str) for completion in completions):
            raise Unreadable(400, "'completions' are texts")
        if any(
            not isinstance(values, list) or len(values) != len(completions) for values in (prompts, *columns.values())
        ):
            raise Unreadable(400, f"prompts and every column are lists of {len(completions)}, one for each completion")
        remarks: dict[str, list[Any]] = {}
        total, _ = score(self.rewards, prompts, completions, columns, remarks)
        try:
            json.dumps(remarks)
        except (TypeError, ValueError) as error:
            raise RewardError(f"The columns that the rewards returned cannot be sent: {error!s:.200}.") from None
        return {"scores": [None if math.isnan(value) else value for value in total.tolist()], "columns": remarks}


class _Handler(Handler):
    server: ScoreServer

    def knows(self) -> bool:
        """Scores are asked for here."""
        return self.path == "/v1/score"

    def answer(self, question: Any) -> Any:
        """Health or scores."""
        if question is None and self.open():
            return self.server.health()
        if question is None:
            raise Unreadable(404, f"there is no {self.path[:100]!r}")
        try:
            return self.server.scores(question)
        except PosttrainError as error:
            raise Unreadable(422, str(error)) from None


class RemoteReward:
    """The rewards behind one address, or behind several in turn: ``http://HOST:PORT,http://HOST:PORT``.

    A worker that does not answer is asked for a while, as it may be starting anew. Raises SettingsError and
    RewardError.
    """

    def __init__(self, address: str, timeout: float = 600.0):
        urls = [split_address(word, "reward")[0].removesuffix("/v1") for word in address.split(",")]
        self.endpoints = [Endpoint(f"{url}/v1", os.environ.get(TOKEN), timeout, attempts=6) for url in urls]
        self._turn = itertools.count()

    def __call__(self, prompts: list[Any], completions: list[str], **columns: list[Any]) -> Any:
        """``(scores, columns)``."""
        endpoint = self.endpoints[next(self._turn) % len(self.endpoints)]
        asked = {"interface": INTERFACE, "prompts": prompts, "completions": completions, "columns": columns}
        try:
            found = endpoint.post("/score", asked)
        except TypeError as error:
            raise RewardError(
                f"The columns cannot be sent to the reward worker at {endpoint.url}: {error}. It takes texts, numbers "
                "and lists of them."
            ) from None
        except (Refused, Unreachable) as error:
            raise RewardError(
                f"The reward worker at {endpoint.url} gives no scores: {error}. Start one with: "
                "posttrain serve-rewards REWARD --port PORT"
            ) from None
        return found["scores"], found["columns"]
