"""HTTP server of the trainer, from which rollout servers fetch weights during an update.

Sent weights stay in host memory, so that a restarted server gets them again, even after the policy has changed. The
address contains a secret, and serves nothing but the offered parts.
"""

from __future__ import annotations

import json
import secrets
import socket
import threading
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

import torch
from safetensors.torch import save
from torch import Tensor

from posttrain.generation.vllm.weights import PART_BYTES
from posttrain.servers.listener import Handler, Listener, Unreadable, same


class Store:
    """The newest weights by name, each with the version that brought it."""

    def __init__(self) -> None:
        self.version = -1
        self.adapter: tuple[dict[str, Tensor], str] | None = None
        """The newest adapter's tensors, and its configuration as JSON."""
        self._tensors: dict[str, Tensor] = {}
        self._versions: dict[str, int] = {}

    def put(self, parts: Iterable[dict[str, Tensor]], version: int) -> None:
        """Copy all tensors, in place of older ones of the same names."""
        for part in parts:
            for name, tensor in part.items():
                kept = self._tensors.get(name)
                if kept is None or kept.shape != tensor.shape or kept.dtype != tensor.dtype:
                    kept = self._tensors[name] = torch.empty(tensor.shape, dtype=tensor.dtype)
                kept.copy_(tensor)
                self._versions[name] = version
        self.version = version

    def newer(self, version: int) -> Iterator[dict[str, Tensor]]:
        """Yield the tensors that a server with ``version`` lacks, in parts."""
        found: dict[str, Tensor] = {}
        size = 0
        for name, tensor in self._tensors.items():
            if self._versions[name] <= version:
                continue
            found[name] = tensor
            size += tensor.numel() * tensor.element_size()
            if size >= PART_BYTES:
                yield found
                found, size = {}, 0
        if found:
            yield found


class WeightHost:
    """Serves offered tensors to the workers of ``server`` (``http://HOST:PORT``) and counts the bytes."""

    def __init__(self, server: str):
        """Listen where ``server`` can reach this machine: on the loopback address alone if the server is on it."""
        self.sent = 0
        """Bytes that workers have fetched."""
        self._offers: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self._secret = secrets.token_urlsafe(16)
        address = _own_address(server)
        self._http = Listener(self._handler(), address, 0)
        host = f"[{address}]" if ":" in address else address
        self._url = f"http://{host}:{self._http.server_port}/{self._secret}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def offer(self, name: str, tensors: dict[str, Tensor], config: str = "") -> str:
        """Offer tensors, with a text in the file's header; return the address."""
        header = {"format": "pt", "config": config} if config else None
        content = save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, metadata=header)
        with self._lock:
            self._offers[name] = content
        return f"{self._url}/{name}"

    def withdraw(self, name: str) -> None:
        """Withdraw an offer."""
        with self._lock:
            self._offers.pop(name, None)

    def close(self) -> None:
        """Stop listening."""
        self._http.shutdown()
        self._http.server_close()

    def _take(self, path: str) -> bytes:
        secret, _, name = path.lstrip("/").partition("/")
        with self._lock:
            content = self._offers.get(name) if same(secret, self._secret) else None
            self.sent += len(content or b"")
        if content is None:
            raise Unreadable(404, "there is nothing here")
        return content

    def _handler(self) -> type[Handler]:
        take = self._take

        class Offers(Handler):
            def answer(self, question: Any) -> bytes:
                """Serve one offer, or 404."""
                return take(self.path)

        return Offers


def config_text(config: dict[str, Any]) -> str:
    """Return an adapter's configuration as the text of its file."""
    return json.dumps(config, default=str)


def _own_address(server: str) -> str:
    """Return this machine's address on the way to ``server``; no packet is sent."""
    parts = urlsplit(server)
    family, _, _, _, address = socket.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])
