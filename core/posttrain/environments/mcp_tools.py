"""Tools of an MCP server, started as a process or reached by address, and called like functions."""

from __future__ import annotations

import asyncio
import atexit
import shlex
import threading
from collections.abc import Callable
from typing import Any

from posttrain.errors import DependencyError, RunFailed, SettingsError

#: Time limits of a server's start, and of a call, in seconds.
START, CALL = 60.0, 120.0


def mcp_tools(spec: str) -> list[Callable[..., Any]]:
    """Return the tools of ``mcp:COMMAND`` or ``mcp:http://HOST:PORT/mcp``. Raises DependencyError, SettingsError."""
    target = spec.removeprefix("mcp:").strip()
    if not target:
        raise SettingsError(f"tools '{spec}': expected mcp:COMMAND or mcp:http://HOST:PORT/mcp.")
    try:
        import mcp  # noqa: F401
    except ImportError:
        raise DependencyError(
            "Tools of an MCP server need the package mcp. Install it with: pip install 'posttrain[mcp]'"
        ) from None
    server = _Server(target)
    return [_function(server, one) for one in server.tools]


def _function(server: _Server, described: Any) -> Callable[..., Any]:
    def call(**arguments: Any) -> Any:
        return server.call(described.name, arguments)

    call.__name__ = described.name
    call.schema = {  # type: ignore[attr-defined]  # read in place of types and docstring
        "type": "function",
        "function": {
            "name": described.name,
            "description": described.description or "",
            "parameters": described.input_schema,
        },
    }
    return call


class _Server:
    """One session with a server, in the event loop of a separate thread."""

    def __init__(self, target: str):
        self.target = target
        self.tools: list[Any] = []
        self._loop = asyncio.new_event_loop()
        self._client: Any = None
        self._ready, self._over = threading.Event(), asyncio.Event()
        self._error: BaseException | None = None
        threading.Thread(target=self._run, name="mcp", daemon=True).start()
        if not self._ready.wait(START) or self._error is not None:
            detail = " ".join(str(self._error or f"no answer in {START:g} seconds").split())[:300]
            raise SettingsError(f"tools 'mcp:{target}': the server does not start: {detail}")
        atexit.register(self.close)

    def call(self, name: str, arguments: dict[str, Any]) -> Any:
        """Return a tool's answer: text, or parts where it has images. Raises RunFailed where the server is gone."""
        asked = asyncio.run_coroutine_threadsafe(self._client.call_tool(name, arguments), self._loop)
        try:
            found = asked.result(CALL)
        except (TimeoutError, ConnectionError, RuntimeError) as error:
            raise RunFailed(
                f"The server 'mcp:{self.target}' does not answer: {error or type(error).__name__}."
            ) from None
        text = "\n".join(part.text for part in found.content if getattr(part, "text", None) is not None)
        if found.is_error:
            return f"Error: {text}"
        if not any(part.type == "image" for part in found.content):
            return text
        return [_part(part) for part in found.content if part.type in ("text", "image")]

    def close(self) -> None:
        """End the session, and the server with it."""
        if self._loop.is_running():
            self._loop.call_soon_threadsafe(self._over.set)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as error:  # the caller of start raises it
            self._error = self._error or error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        from mcp import Client, StdioServerParameters

        command, *words = shlex.split(self.target)
        address = self.target.startswith(("http://", "https://"))
        server: Any = self.target if address else StdioServerParameters(command=command, args=words)
        async with Client(server, read_timeout_seconds=CALL) as client:
            self._client = client
            self.tools = (await client.list_tools()).tools
            self._ready.set()
            await self._over.wait()


def _part(part: Any) -> dict[str, Any]:
    """Return a part of a server's answer as a part of a message."""
    return {"type": "text", "text": part.text} if part.type == "text" else {"type": "image", "base64": part.data}
