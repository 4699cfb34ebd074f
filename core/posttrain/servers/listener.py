"""The HTTP server of reward workers and of the weight host: the standard library's, with limits on clients.

A server library would be a dependency of every installation for two small servers, so the limits are here: the size of
a question, the time in which it must arrive and its answer be taken, the number of clients at a time, and which
clients. Browsers are refused: a page of another site could ask in the name of its viewer.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import socket
import sys
import threading
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from posttrain.errors import SettingsError
from posttrain.servers.clock import CLOCK

#: Environment variable of the shared token.
TOKEN = "POSTTRAIN_TOKEN"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
#: Most bytes of a question.
LARGEST = 128 * 2**20
#: Clients at a time; a further one is asked to retry.
CLIENTS = 128
#: Time limit in seconds of a whole question, and of the client's reading of each part of the answer.
PATIENCE = 60.0
_PART = 2**20


@contextlib.contextmanager
def address_errors(host: str, port: int) -> Iterator[None]:
    """Raise SettingsError where the block cannot listen on ``host`` and ``port``."""
    try:
        yield
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "no host has this name"
        raise SettingsError(f"Nothing can listen on {host}:{port}: {reason}. Choose another --port.") from None


def family_of(host: str) -> socket.AddressFamily:
    """Return the address family of ``host``."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


class Unreadable(Exception):
    """A question that is answered by a status and a line alone."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status
        self.message = message


class Listener(ThreadingHTTPServer):
    """Listens on ``host`` and ``port`` (0: a free one). Without the ``token`` clients get only health."""

    daemon_threads = True

    def __init__(self, handler: type[Handler], host: str, port: int, token: str | None = None):
        self.address_family = family_of(host)
        self.token = token
        self.largest, self.patience = LARGEST, PATIENCE
        self._places = threading.BoundedSemaphore(CLIENTS)
        super().__init__((host, port), handler)
        self.local = self.server_address[0] in LOOPBACK

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the client a thread, if one is free."""
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
            return
        with contextlib.suppress(OSError):
            request.setblocking(False)
            request.send(b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n")
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one client."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print one line; a client that went away is no error."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            print(f"{type(error).__name__} while {client_address[0]} was served: {error!s:.200}", file=sys.stderr)


class Handler(BaseHTTPRequestHandler):
    """Reads one question within the limits. A subclass implements ``answer``."""

    server: Listener
    server_version = "posttrain"
    sys_version = ""

    def answer(self, question: Any) -> Any:
        """Return the response to ``question`` (None: a GET), sent as JSON or unchanged. Raises Unreadable."""
        raise Unreadable(HTTPStatus.NOT_FOUND, "there is nothing here")

    def open(self) -> bool:
        """Whether the path needs no token."""
        return self.path in ("/health", "/v1/health")

    def knows(self) -> bool:
        """Whether questions can be posted to the path."""
        return False

    def setup(self) -> None:
        """Start the timer that drops a client that takes too long, however often it sends a byte."""
        self._late = CLOCK.after(self.server.patience, self._let_go)
        super().setup()
        self.connection.settimeout(self.server.patience)

    def finish(self) -> None:
        """Cancel the client's timer."""
        self._late.cancel()
        super().finish()

    def _let_go(self) -> None:
        with contextlib.suppress(OSError):
            self.request.shutdown(socket.SHUT_RDWR)

    def do_GET(self) -> None:
        """Answer a question without a body."""
        self._respond(posted=False)

    def do_POST(self) -> None:
        """Answer a question in JSON."""
        self._respond(posted=True)

    def _respond(self, posted: bool) -> None:
        try:
            self._check_client()
            question = self._question() if posted else None
            self._late.cancel()  # from here on the server takes the time
            self._send(HTTPStatus.OK, self.answer(question))
        except Unreadable as error:
            self._send(error.status, {"error": {"message": error.message}})
        except OSError:
            raise
        except Exception as error:
            self.server.handle_error(self.request, self.client_address)
            self._send(500, {"error": {"message": f"the server failed: {type(error).__name__}"}})

    def _check_client(self) -> None:
        host = (self.headers.get("Host") or "").strip()
        name = host.partition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
        if self.headers.get("Origin") is not None or self.headers.get("Sec-Fetch-Site") is not None:
            raise Unreadable(HTTPStatus.FORBIDDEN, "web pages may not ask here")
        if self.server.local and name and name.lower() not in LOOPBACK:
            raise Unreadable(HTTPStatus.FORBIDDEN, "this server is for its own machine, under the name localhost")
        if self.server.token is not None and not self.open():
            given = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            if not same(given, self.server.token):
                raise Unreadable(HTTPStatus.UNAUTHORIZED, f"the token is missing or wrong; both sides need {TOKEN}")

    def _question(self) -> dict[str, Any]:
        if not self.knows():
            raise Unreadable(HTTPStatus.NOT_FOUND, f"there is no {self.path[:100]!r}")
        if (self.headers.get_content_type()) != "application/json":
            raise Unreadable(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a question has the Content-Type application/json")
        lengths = self.headers.get_all("Content-Length") or []
        if self.headers.get("Transfer-Encoding") is not None or not lengths:
            raise Unreadable(HTTPStatus.LENGTH_REQUIRED, "a question says its Content-Length")
        if len(lengths) > 1 or not (lengths[0].isascii() and lengths[0].isdigit()):
            raise Unreadable(HTTPStatus.BAD_REQUEST, f"Content-Length is {lengths[0][:40]!r}, expected a whole number")
        digits = lengths[0].lstrip("0") or "0"
        if len(digits) > 15 or int(digits) > self.server.largest:
            raise Unreadable(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a question has at most {self.server.largest} bytes")
        body = self.rfile.read(int(digits))
        try:
            found = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise Unreadable(HTTPStatus.BAD_REQUEST, f"the question is no JSON: {error!s:.200}") from None
        if not isinstance(found, dict):
            raise Unreadable(HTTPStatus.BAD_REQUEST, f"the question is {type(found).__name__}, expected an object")
        return found

    def _send(self, status: int, answer: Any) -> None:
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        kind = "application/octet-stream" if isinstance(answer, bytes) else "application/json"
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        view = memoryview(data)
        for start in range(0, len(data), _PART):  # the time limit holds for a part, large answers take longer
            self.wfile.write(view[start : start + _PART])

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Send the standard library's refusals in the form of all other answers."""
        self.close_connection = True
        if self.request_version == "HTTP/0.9":
            self.request_version = self.protocol_version
        self._send(code, {"error": {"message": message or HTTPStatus(code).phrase}})

    def log_message(self, *_: Any) -> None:
        """Log nothing: a run asks at every step."""


def same(given: str, expected: str) -> bool:
    """Compare two secrets in a time that does not depend on where they differ."""
    return hmac.compare_digest(given.encode(errors="surrogateescape"), expected.encode())
