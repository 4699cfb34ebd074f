"""An environment behind HTTP, in OpenEnv's form: POST /reset and /step, JSON both ways."""

from __future__ import annotations

import base64
import io
import json
import urllib.error
import urllib.request
from typing import Any

from posttrain.environments.environment import Observation
from posttrain.errors import RunFailed

#: Seconds for one request; the run's own limit for a turn is shorter.
TIMEOUT = 120.0


class HttpEnvironment:
    """One episode of a server's environment.

    An action is ``{"message": TEXT}``, with ``tool_calls`` where the model called tools. The text of an observation is
    the value of one of ``TEXTS``, or the whole as JSON; ``messages`` are used unchanged.
    """

    TEXTS = ("text", "content", "message", "result", "output")

    def __init__(self, address: str):
        self.address = address.rstrip("/")
        self.episode: str | None = None

    def reset(self, row: dict[str, Any], seed: int) -> list[dict[str, Any]] | str | None:
        """Start an episode; send the row's columns and the seed."""
        columns = {name: value for name, value in row.items() if name not in ("prompt_text", "tools")}
        found = self._post("/reset", {"seed": seed % 2**31, "row": columns})
        self.episode = _episode(found)
        return self._said(found.get("observation")) or None

    def step(self, message: dict[str, Any]) -> Observation:
        """Send a turn of the model."""
        action = {"message": str(message.get("content") or "")}
        if message.get("tool_calls"):
            action["tool_calls"] = message["tool_calls"]
        body = {"action": action} | ({"episode_id": self.episode} if self.episode is not None else {})
        found = self._post("/step", body)
        return Observation(self._said(found.get("observation")), found.get("reward"), bool(found.get("done")))

    def tools(self) -> list[dict[str, Any]]:
        """Return JSON schemas of the server's tools; none where it has no such endpoint."""
        try:
            with urllib.request.urlopen(f"{self.address}/tools", timeout=TIMEOUT) as answer:
                found = json.load(answer)
        except (OSError, ValueError):
            return []
        return found if isinstance(found, list) else found.get("tools", [])

    def _said(self, observation: Any) -> list[dict[str, Any]] | str:
        if observation is None:
            return ""
        if isinstance(observation, dict):
            if isinstance(observation.get("messages"), list):
                return observation["messages"]
            known = [observation[name] for name in self.TEXTS if isinstance(observation.get(name), str)]
            return known[0] if known else json.dumps(observation)
        return observation if isinstance(observation, str) else json.dumps(observation)

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            self.address + path, json.dumps(body, default=_data_url).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                found = json.load(answer)
        except (OSError, ValueError) as error:
            raise RunFailed(f"The environment at {self.address} does not answer {path}: {error}.") from None
        if not isinstance(found, dict):
            raise RunFailed(
                f"The environment at {self.address} answered {path} with {found!r:.80}, expected an object."
            )
        return found


def _data_url(value: Any) -> str:
    """Return an image of a row, a PIL image or its bytes, as a data URL; refuse all else."""
    if type(value).__module__.startswith("PIL."):
        file = io.BytesIO()
        value.save(file, "PNG")
        value = file.getvalue()
    if not isinstance(value, bytes):
        raise TypeError(f"a {type(value).__name__} of the row cannot be written as JSON")
    return f"data:image/png;base64,{base64.b64encode(value).decode()}"


def _episode(found: dict[str, Any]) -> str | None:
    state = found.get("state")
    known = found.get("episode_id", state.get("episode_id") if isinstance(state, dict) else None)
    return None if known is None else str(known)
