"""Servers of a run on the machines of a Ray cluster: Ray places and watches them, the trainer is unchanged.

Each server is a ``posttrain`` command that listens on ``--host`` and ``--port``. An actor on a machine of Ray's choice
starts it, and restarts it when it ends; Ray restarts a lost actor. The training command runs in this process's place,
under whatever launches it, and finds the addresses in its flags.
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from posttrain.errors import DependencyError, RunFailed, SettingsError
from posttrain.servers.listener import TOKEN

#: Seconds between two starts of a server that ends by itself.
PAUSE = 1.0
#: Seconds until a server must answer for the first time.
START_LIMIT = 600.0


@dataclass(frozen=True)
class Role:
    """``count`` servers of one kind, each a command with its share of GPUs and CPUs."""

    name: str
    count: int
    words: list[str]
    gpus: float = 0.0
    cpus: float = 1.0


def read_role(text: str) -> Role:
    """Parse ``NAME=COUNT: COMMAND``, or ``NAME=COUNT gpus=1 cpus=4: COMMAND``. Raises SettingsError."""
    match = re.fullmatch(r"(\w+)=(\d+)((?:\s+\w+=[\d.]+)*)\s*:\s*(\S.*)", text)
    shares = dict(word.split("=") for word in match[3].split()) if match else {}
    if match is None or int(match[2]) < 1 or not set(shares) <= {"gpus", "cpus"}:
        raise SettingsError(
            f"role '{text}' cannot be read. Expected NAME=COUNT [gpus=N] [cpus=N]: COMMAND, such as "
            "'rewards=2: serve-rewards gsm8k'."
        )
    return Role(match[1], int(match[2]), shlex.split(match[4]), **{name: float(v) for name, v in shares.items()})


class Keeper:
    """Keeps one server running on its machine; an actor of Ray."""

    def __init__(self, words: list[str], port: int):
        """Start the server. Raises OSError where the port is taken."""
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
        self.host = _own_address()
        self.port = port
        self.restarts = 0
        self.process: subprocess.Popen[bytes] | None = None
        self._stopped = threading.Event()
        command = [sys.executable, "-m", "posttrain.cli.main", *words, "--host", self.host, "--port", str(port)]
        threading.Thread(target=self._keep, args=(command,), daemon=True).start()

    def _keep(self, command: list[str]) -> None:
        while not self._stopped.is_set():
            self.process = subprocess.Popen(command)
            self.process.wait()
            if not self._stopped.wait(PAUSE):
                self.restarts += 1

    def state(self) -> dict[str, Any]:
        """Return address, whether it answers, process and number of restarts."""
        url = f"http://{self.host}:{self.port}"
        process = None if self.process is None else self.process.pid
        return {"url": url, "ready": _answers(url), "process": process, "restarts": self.restarts}

    def stop(self) -> None:
        """End the server."""
        self._stopped.set()
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()


def _own_address() -> str:
    """Return this machine's address as Ray knows it."""
    import ray

    return ray.util.get_node_ip_address()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as response:  # an address of this machine
            return response.status == 200
    except (OSError, urllib.error.URLError):
        return False


class Placed:
    """Servers of ``roles`` on the cluster at ``address`` (None: a new one on this machine). A context manager."""

    def __init__(self, roles: list[Role], address: str | None, first_port: int):
        try:
            import ray
        except ImportError:
            raise DependencyError(
                "Placing roles on several machines needs the package ray. Install it with: pip install 'posttrain[ray]'"
            ) from None
        self.ray, self.roles, self.address, self.first_port = ray, roles, address, first_port
        self.keepers: dict[str, list[Any]] = {}

    def __enter__(self) -> Placed:
        self.ray.init(address=self.address, log_to_driver=True, include_dashboard=False)
        kind: Any = self.ray.remote(max_restarts=-1, max_task_retries=-1)(Keeper)
        port = self.first_port
        token = os.environ.setdefault(TOKEN, secrets.token_urlsafe(16))  # the training command reads it too
        for role in self.roles:
            for _ in range(role.count):
                shares = {"num_gpus": role.gpus, "num_cpus": role.cpus}
                actor = kind.options(**shares, runtime_env={"env_vars": {TOKEN: token}}).remote(role.words, port)
                self.keepers.setdefault(role.name, []).append(actor)
                port += 1
        return self

    def addresses(self) -> dict[str, str]:
        """Return each role's addresses, separated by commas, once all servers answer. Raises RunFailed."""
        deadline = time.monotonic() + START_LIMIT
        while True:
            states = {name: self.ray.get([one.state.remote() for one in own]) for name, own in self.keepers.items()}
            waiting = [(name, state) for name, own in states.items() for state in own if not state["ready"]]
            if not waiting:
                return {name: ",".join(state["url"] for state in own) for name, own in states.items()}
            if time.monotonic() > deadline:
                name, state = waiting[0]
                raise RunFailed(
                    f"Server '{name}' at {state['url']} did not answer in {START_LIMIT:g} s; it was started "
                    f"{state['restarts'] + 1} times. Look at its lines above, or try its command alone."
                )
            time.sleep(0.5)

    def __exit__(self, *_: object) -> None:
        for actor in [actor for own in self.keepers.values() for actor in own]:
            self.ray.get(actor.stop.remote())
            self.ray.kill(actor)
        self.ray.shutdown()


def fill(words: list[str], addresses: dict[str, str]) -> list[str]:
    """Replace ``{NAME}`` in a command's words by that role's addresses. Raises SettingsError for an unknown name."""

    def address(match: re.Match[str]) -> str:
        if match[1] not in addresses:
            raise SettingsError(f"'{match[0]}' names no role. Roles: {', '.join(addresses)}.")
        return addresses[match[1]]

    return [re.sub(r"\{(\w+)\}", address, word) for word in words]
