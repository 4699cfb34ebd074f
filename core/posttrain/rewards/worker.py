"""Reward workers: a small HTTP server that scores completions, and the reward that calls it.

The interface has a number, and both sides send theirs. ``GET /v1/health`` gives ``{"role": "rewards", "interface": 3,
"rewards": [NAMES]}``; ``POST /v1/score`` takes ``{"interface": 1, "prompts": [...], "completions": [...], "columns":
{NAME: [...]}}`` and gives ``{"scores": [number or null], "columns": {NAME: [...]}}``, the weighted sums. A question
with images is asked in interface 2: ``"pictures": [DATA URLS]``, and ``columns["images"]`` has a list of indices into
them for each completion; one whose other columns have pictures or bytes in interface 3: ``"places": [[PATH, INDEX]]``
says where they stand, a path such as ``["image", 0]`` or ``["image", 0, "bytes"]``. Beyond its own machine a worker
requires the token that both sides read from the environment.
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
from posttrain.servers.listener import LARGEST, TOKEN, Handler, Listener, Unreadable

#: Interfaces that a worker speaks. A question is asked in the lowest that has what it needs, which older workers speak
#: too: text, images of prompts, pictures and bytes in other columns.
INTERFACES = (1, 2, 3)


class ScoreServer(Listener):
    """Serves ``rewards`` on ``host`` and ``port`` (0: a free one); ``serve_forever`` runs it."""

    def __init__(self, rewards: list[Reward], host: str, port: int, token: str | None = None):
        self.rewards = rewards
        super().__init__(_Handler, host, port, token)

    def health(self) -> dict[str, Any]:
        """Return the worker's role, interface and rewards."""
        return {"role": "rewards", "interface": INTERFACES[-1], "rewards": [reward.name for reward in self.rewards]}

    def scores(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Answer a question. Raises PosttrainError, and Unreadable for a question of another form."""
        if asked.get("interface") not in INTERFACES:
            raise RewardError(
                f"This reward worker speaks the interfaces {INTERFACES[0]} to {INTERFACES[-1]}, the question was asked "
                f"in {short(asked.get('interface'))}. Install the same posttrain on both sides."
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
        if asked["interface"] > INTERFACES[0]:
            from posttrain.rewards.worker_images import unpack_columns  # imports torch, and starting a worker does not

            columns = unpack_columns(asked)
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
        """Whether the path is that of scores."""
        return self.path == "/v1/score"

    def answer(self, question: Any) -> Any:
        """Return health or scores."""
        if question is None and self.open():
            return self.server.health()
        if question is None:
            raise Unreadable(404, f"there is no {self.path[:100]!r}")
        try:
            return self.server.scores(question)
        except PosttrainError as error:
            raise Unreadable(422, str(error)) from None


class RemoteReward:
    """The rewards at one address, or at several in turn: ``http://HOST:PORT,http://HOST:PORT``.

    A worker that does not answer is retried for a while, as it may be restarting. Raises SettingsError and RewardError.
    """

    def __init__(self, address: str, timeout: float = 600.0):
        urls = [split_address(word, "reward")[0].removesuffix("/v1") for word in address.split(",")]
        key = os.environ.get(TOKEN)
        self.endpoints = [Endpoint(f"{url}/v1", key, timeout, attempts=6, largest=LARGEST) for url in urls]
        self._turn = itertools.count()

    def __call__(
        self,
        prompts: list[Any],
        completions: list[str],
        images: list[list[Any]] | None = None,
        **columns: list[Any],
    ) -> Any:
        """Return ``(scores, columns)``. ``images`` are those of each prompt."""
        endpoint = self.endpoints[next(self._turn) % len(self.endpoints)]
        if images is not None:
            columns["images"] = images
        asked = {"interface": INTERFACES[0], "prompts": prompts, "completions": completions, "columns": columns}
        if images is not None and any(images):
            from posttrain.rewards.worker_images import pack_question

            asked = pack_question(asked, images)
        try:
            found = endpoint.post("/score", asked)
        except TypeError as error:
            raise RewardError(
                f"The columns cannot be sent to the reward worker at {endpoint.url}: {error}. It takes texts, numbers "
                "and lists of them, and the images of prompts."
            ) from None
        except (Refused, Unreachable) as error:
            too_long = isinstance(error, Refused) and error.status == 413
            raise RewardError(
                f"The reward worker at {endpoint.url} gives no scores: {error}. "
                + (
                    "Ask about fewer completions at a time (--batch-size), or use smaller pictures."
                    if too_long
                    else "Start one with: posttrain serve-rewards REWARD --port PORT"
                )
            ) from None
        return found["scores"], found["columns"]
