"""Rewards as a role of their own: a small HTTP server that scores completions, and the reward that asks it.

The interface has a number, and both sides say theirs. ``GET /v1/health`` gives ``{"role": "rewards", "interface": 1,
"rewards": [NAMES]}``; ``POST /v1/score`` takes ``{"interface": 1, "prompts": [...], "completions": [...], "columns":
{NAME: [...]}}`` and gives ``{"scores": [number or null], "columns": {NAME: [...]}}``, the weighted sums.
"""

from __future__ import annotations

import itertools
import json
import math
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from posttrain.endpoint import Endpoint, Refused, Unreachable, split_address
from posttrain.errors import PosttrainError, RewardError
from posttrain.rewards.reward import Reward
from posttrain.rewards.scoring import score

INTERFACE = 1


class ScoreServer(ThreadingHTTPServer):
    """Answers for ``rewards`` on ``host`` and ``port`` (0: a free one); ``serve_forever`` runs it."""

    daemon_threads = True

    def __init__(self, rewards: list[Reward], host: str, port: int):
        self.rewards = rewards
        super().__init__((host, port), _Handler)

    def health(self) -> dict[str, Any]:
        """Who this is."""
        return {"role": "rewards", "interface": INTERFACE, "rewards": [reward.name for reward in self.rewards]}

    def scores(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The answer to a question. Raises PosttrainError."""
        if asked.get("interface") != INTERFACE:
            raise RewardError(
                f"This reward worker speaks interface {INTERFACE}, the question was asked in {asked.get('interface')}. "
                "Install the same posttrain on both sides."
            )
        remarks: dict[str, list[Any]] = {}
        total, _ = score(self.rewards, asked["prompts"], asked["completions"], asked["columns"], remarks)
        return {"scores": [None if math.isnan(value) else value for value in total.tolist()], "columns": remarks}


class _Handler(BaseHTTPRequestHandler):
    server: ScoreServer

    def do_GET(self) -> None:
        """Health."""
        known = self.path in ("/health", "/v1/health")
        self._reply(200 if known else 404, self.server.health() if known else _error(f"there is no {self.path}"))

    def do_POST(self) -> None:
        """Scores."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path != "/v1/score":
            self._reply(404, _error(f"there is no {self.path}"))
            return
        try:
            self._reply(200, self.server.scores(json.loads(body)))
        except PosttrainError as error:
            self._reply(422, _error(str(error)))
        except (ValueError, KeyError, TypeError) as error:
            self._reply(400, _error(f"the question cannot be read: {type(error).__name__}: {error}"))

    def _reply(self, status: int, answer: dict[str, Any]) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Say nothing: a run asks at every step."""


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message}}


class RemoteReward:
    """The rewards behind one address, or behind several in turn: ``http://HOST:PORT,http://HOST:PORT``.

    A worker that does not answer is asked for a while, as it may be starting anew. Raises SettingsError and
    RewardError.
    """

    def __init__(self, address: str, timeout: float = 600.0):
        urls = [split_address(word, "reward")[0].removesuffix("/v1") for word in address.split(",")]
        self.endpoints = [Endpoint(f"{url}/v1", None, timeout, attempts=6) for url in urls]
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
