"""JSON over HTTP with a rollout server, without retries; a lost machine is noticed in half a minute."""

from __future__ import annotations

import json
import socket
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from posttrain.servers.endpoint import Refused, read_key

#: Time limit of a connection, in seconds.
CONNECT_TIMEOUT = 10.0
#: Time limit of a request, in seconds; a completion is answered after its last token.
TIMEOUT = 3600.0
#: TCP keepalive of a silent connection: seconds to the first probe, seconds between probes, number of probes.
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}


class Gone(Exception):
    """No answer: the server does not listen, the connection broke, or the server reports that its engine is dead."""


class Wire:
    """A server at ``url`` (``http://HOST:PORT``). Safe to use from several threads."""

    def __init__(self, url: str):
        self.url = url
        self._parts = urlsplit(url)
        self._key = read_key(url, None)

    def get(self, path: str, timeout: float = CONNECT_TIMEOUT) -> Any:
        """Return the answer's JSON, None for an empty one. Raises Gone, and Refused for an error status."""
        return self._ask("GET", path, None, timeout)

    def post(self, path: str, payload: dict[str, Any] | None = None, timeout: float = TIMEOUT) -> Any:
        """Post ``payload`` and return as ``get`` does."""
        return self._ask("POST", path, json.dumps(payload or {}), timeout)

    def _ask(self, verb: str, path: str, body: str | None, timeout: float) -> Any:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        kind = HTTPSConnection if self._parts.scheme == "https" else HTTPConnection
        connection = kind(self._parts.hostname or "", self._parts.port, timeout=min(timeout, CONNECT_TIMEOUT))
        try:
            connection.connect()
            _watch(connection.sock)
            connection.sock.settimeout(timeout)
            connection.request(verb, self._parts.path + path, body, headers)
            response = connection.getresponse()
            text = response.read().decode(errors="replace")
        except TimeoutError:
            raise Gone(f"no answer in {timeout:g} seconds") from None
        except (OSError, HTTPException) as error:
            raise Gone(_words(error)) from None
        finally:
            connection.close()
        if response.status >= 500 and "dead" in text.lower():
            raise Gone("its engine is dead")
        if response.status >= 400:
            raise Refused(response.status, _message(text) or response.reason)
        try:
            return json.loads(text) if text.strip() else None
        except ValueError:
            return text


def _watch(connection: Any) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _words(error: Exception) -> str:
    return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())


def _message(text: str) -> str:
    """Return the message of an error's body, on one line."""
    try:
        found = json.loads(text)
        while isinstance(found, dict) and (inner := found.get("error") or found.get("detail") or found.get("message")):
            found = inner
    except ValueError:
        found = text
    if not found:
        return ""
    line = " ".join((found if isinstance(found, str) else json.dumps(found)).split())
    return line if len(line) <= 300 else line[:297] + "..."
