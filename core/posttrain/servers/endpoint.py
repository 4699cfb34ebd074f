"""Client of servers with the OpenAI protocol: JSON over HTTP with retries, parallel questions, keys kept secret."""

from __future__ import annotations

import json
import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from posttrain.errors import SettingsError

#: Environment variable of the key where none is named.
KEY = "OPENAI_API_KEY"
#: Seconds before the second attempt; doubled before each further one.
DELAY = 1.0
#: Longest wait that a server may request.
LONGEST_DELAY = 60.0
#: Statuses of a server that is busy or starting, not of a faulty question.
_PASSING = (408, 409, 425, 429)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Unreachable(Exception):
    """No answer after every attempt; the text is the last reason."""


class Refused(Exception):
    """The server answered with an error that another attempt would not fix."""

    def __init__(self, status: int, message: str):
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Refuse: a key must not follow to another host, and a redirected POST would lose its body."""


class Endpoint:
    """A server below ``url`` (``http://HOST:PORT/v1``), which takes questions of up to ``largest`` bytes.

    Safe to use from several threads.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        timeout: float = 120.0,
        attempts: int = 5,
        workers: int = 8,
        largest: int | None = None,
    ):
        self.url = url.rstrip("/")
        self.largest = largest
        self.timeout = timeout
        self.attempts = attempts
        self.workers = workers
        self._key = key
        self._opener = urllib.request.build_opener(_NoRedirect)

    def post(self, path: str, payload: dict[str, Any], attempts: int | None = None) -> Any:
        """Post ``payload`` and return the server's JSON. Raises Unreachable and Refused."""
        body = json.dumps(payload).encode()
        if self.largest is not None and len(body) > self.largest:
            # the server would close the connection, which looks like one that is starting
            raise Refused(413, f"a question has at most {self.largest} bytes, this one has {len(body)}")
        return self._ask(path, body, attempts or self.attempts)

    def models(self, attempts: int | None = None) -> list[str]:
        """Return the names of the server's models. Raises Unreachable and Refused."""
        found = self._ask("/models", None, attempts or self.attempts)
        rows = found.get("data") if isinstance(found, dict) else None
        return [str(row["id"]) for row in rows or [] if isinstance(row, dict) and "id" in row]

    def each(self, function: Callable[[Any], Any], questions: Iterable[Any]) -> list[Any]:
        """Apply ``function`` to every question, ``workers`` at a time, in order; the first error ends the others."""
        with ThreadPoolExecutor(max_workers=self.workers) as pool:
            return list(pool.map(function, questions))

    def _ask(self, path: str, body: bytes | None, attempts: int) -> Any:
        delay = DELAY
        for attempt in range(1, attempts + 1):
            try:
                return self._once(path, body)
            except _Passing as error:
                reason, wait = str(error), error.wait
            if attempt < attempts:
                time.sleep(min(delay if wait is None else wait, LONGEST_DELAY))
                delay *= 2
        raise Unreachable(reason if attempts == 1 else f"{reason}, {attempts} attempts")

    def _once(self, path: str, body: bytes | None) -> Any:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "posttrain"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self.url + path, data=body, headers=headers)
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                text = response.read()
        except urllib.error.HTTPError as error:
            raise self._failure(error) from None
        except TimeoutError:
            raise _Passing(f"no answer in {self.timeout:g} seconds") from None
        except (OSError, HTTPException) as error:
            raise _Passing(_reason(error, self.timeout)) from None
        try:
            return json.loads(text)
        except ValueError:
            raise Refused(200, f"what is no JSON: {self._quiet(text.decode(errors='replace'))!r}") from None

    def _failure(self, error: urllib.error.HTTPError) -> Exception:
        """Return the exception for an HTTP status: worth another attempt, or not."""
        try:
            with error:
                body = error.read().decode(errors="replace")
        except (OSError, HTTPException):  # the status alone is enough
            body = ""
        message = self._quiet(_message(body) or str(error.reason))
        if error.code in _PASSING or error.code >= 500:
            wait = error.headers.get("Retry-After") or ""
            return _Passing(f"status {error.code}: {message}", float(wait) if wait.isdecimal() else None)
        if error.code in (301, 302, 303, 307, 308):
            message = f"it has moved to {error.headers.get('Location')}"
        return Refused(error.code, message)

    def _quiet(self, text: str) -> str:
        """Return the text as one short line without the key, which some servers repeat."""
        line = " ".join((text.replace(self._key, "***") if self._key else text).split()).rstrip(".")
        return line if len(line) <= 300 else line[:297] + "..."


class _Passing(Exception):
    def __init__(self, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.wait = wait


def _reason(error: Exception, timeout: float) -> str:
    """Return why a connection failed, in a few words."""
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(inner, TimeoutError):
        return f"no answer in {timeout:g} seconds"
    if isinstance(inner, socket.gaierror):
        return "no host of this name"
    return " ".join((getattr(inner, "strerror", None) or str(inner) or type(inner).__name__).split())


def _message(text: str) -> str:
    """Return the message of an error's body, in any of the servers' forms."""
    try:
        found = json.loads(text)
    except ValueError:
        return text
    for name in ("error", "message", "detail"):
        if isinstance(found, dict) and found.get(name):
            found = found[name]
    return found if isinstance(found, str) else json.dumps(found)


def split_address(address: str, what: str) -> tuple[str, str | None]:
    """Split ``http://HOST:PORT/v1#MODEL`` into server and model. Raises SettingsError, which never repeats a secret."""
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise SettingsError(f"{what}: the address cannot be read ({error}). {_form()}") from None
    if parts.username or parts.password or parts.query:
        raise SettingsError(
            f"{what}: the address of '{host}' holds a user or a query. Keys come from an environment variable. "
            f"{_form()}"
        )
    if parts.scheme not in ("http", "https") or not host:
        raise SettingsError(f"{what}: '{address}' is no address. {_form()}")
    return f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/"), parts.fragment or None


def _form() -> str:
    return "Expected http://HOST:PORT/v1#MODEL."


def read_key(url: str, variable: str | None) -> str | None:
    """Read the key in the environment variable, or in OPENAI_API_KEY where none is named.

    A default key is not sent in clear text to another machine. Raises SettingsError where a named variable is not set,
    or its value cannot be a key.
    """
    parts = urlsplit(url)
    if variable is None and parts.scheme != "https" and parts.hostname not in _LOOPBACK:
        return None
    key = os.environ.get(variable or KEY, "").strip()
    if variable is not None and not key:
        raise SettingsError(f"key_env names the environment variable '{variable}', which is not set. Export it.")
    if not key.isascii() or not key.isprintable():
        raise SettingsError(f"The environment variable '{variable or KEY}' holds characters that no key has.")
    return key or None
