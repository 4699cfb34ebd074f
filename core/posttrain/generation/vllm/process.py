"""vLLM's own server as a process: started for a trainer, watched, restarted when it dies."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from posttrain.errors import GeneratorLost

#: A server that dies sooner than this after its start, three times in a row, is given up.
SHORT_LIFE = 30.0
SHORT_LIVES = 3
#: Seconds a server may take to end when asked to.
GRACE = 10.0


@dataclass(frozen=True)
class ServerOptions:
    """Options of ``vllm serve``."""

    model: str
    host: str = "127.0.0.1"
    port: int = 8000
    dtype: str = "auto"
    max_length: int | None = None
    """Longest text, prompt and answer together, in tokens."""
    batch_size: int = 64
    """Completions that run at one time."""
    logprobs_mode: str = "raw_logprobs"
    adapter_rank: int = 0
    """Largest rank of a LoRA adapter; 0 for full weights."""
    gpu_memory: float = 0.9
    dummy: bool = False
    """Start without weights: the trainer sends them all."""
    more: list[str] = field(default_factory=list)
    """Further flags of vLLM."""

    def command(self) -> list[str]:
        """Return vLLM's server command with all flags that a trainer needs."""
        # the module behind ``vllm serve``, without a look-up of its version that fails in builds of another name
        words = [sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry", "--model", self.model]
        words += ["--host", self.host, "--port", str(self.port), "--dtype", self.dtype]
        words += ["--max-num-seqs", str(self.batch_size), "--logprobs-mode", self.logprobs_mode]
        words += ["--worker-extension-cls", "posttrain.generation.vllm.worker.WeightReceiver"]
        words += [
            "--weight-transfer-config",
            '{"backend": "posttrain"}',
            "--generation-config",
            "vllm",
            "--enable-scale-out",
        ]
        # vLLM's default; after -- its own flag overrides it
        words += ["--disable-uvicorn-access-log", "--no-trust-remote-code"]
        if self.max_length is not None:
            words += ["--max-model-len", str(self.max_length)]
        if self.adapter_rank:
            words += ["--enable-lora", "--max-lora-rank", str(self.adapter_rank)]
            words += ["--max-loras", "2", "--max-cpu-loras", "4"]
        if self.dummy:
            words += ["--load-format", "dummy"]
        if _on_cpu():
            words += ["--enforce-eager", "--block-size", "32", "--kv-cache-memory-bytes", str(1 << 30)]
        else:
            words += ["--gpu-memory-utilization", str(self.gpu_memory)]
        return words + self.more

    def environment(self) -> dict[str, str]:
        """Return the environment in which the endpoints for weights and adapters exist."""
        wanted = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
        quiet = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
        if _on_cpu():
            quiet["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"  # no restriction applies there, and it imports once
        return quiet | os.environ | wanted


def _on_cpu() -> bool:
    from vllm.platforms import current_platform

    return current_platform.is_cpu()


def supervise(options: ServerOptions, say: Callable[[str], None], until: threading.Event) -> int:
    """Run the server until ``until`` is set, restarting it whenever it dies. Return an exit code."""
    short = 0
    while not until.is_set():
        begun = time.monotonic()
        process = subprocess.Popen(options.command(), env=options.environment(), start_new_session=True)
        try:
            while process.poll() is None and not until.wait(0.5):
                pass
        finally:
            end(process)
        if until.is_set():
            break
        lived = time.monotonic() - begun
        short = short + 1 if lived < SHORT_LIFE else 0
        if short >= SHORT_LIVES:
            say(f"vLLM's server ended {short} times within {SHORT_LIFE:.0f} seconds of its start; giving up.")
            return 1
        say(f"vLLM's server on port {options.port} ended ({process.returncode}) after {lived:.0f} s; starting again.")
    return 0


def end(process: subprocess.Popen) -> None:
    """End a server and its process group: its engine would outlive it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            continue
        if number == signal.SIGTERM:
            time.sleep(0.2)  # the group's other processes get the signal at the same time
    process.wait()


def free_port() -> int:
    """Return a free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Supervised:
    """``posttrain serve-rollouts`` as a child of this process, which ends with it."""

    def __init__(self, options: ServerOptions, folder: tempfile.TemporaryDirectory):
        """Start it; ``folder`` holds its model and is deleted with it. Its output goes to a file beside that."""
        self.url = f"http://{options.host}:{options.port}"
        self.log = f"{folder.name}.log"
        self._folder = folder
        words = [sys.executable, "-m", "posttrain", "serve-rollouts", options.model, "--with-parent"]
        words += ["--host", options.host, "--port", str(options.port), "--dtype", options.dtype]
        words += ["--batch-size", str(options.batch_size), "--logprobs-mode", options.logprobs_mode]
        words += ["--lora-rank", str(options.adapter_rank), "--gpu-memory", str(options.gpu_memory)]
        words += [] if options.max_length is None else ["--max-length", str(options.max_length)]
        words += ["--dummy-weights"] if options.dummy else []
        with open(self.log, "ab") as output:
            self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=output, stderr=output)

    def check(self) -> None:
        """Raise GeneratorLost where the child has given up."""
        if self.process.poll() is not None:
            raise GeneratorLost(f"The rollout server at {self.url} could not be kept running. Its log: {self.log}")

    def close(self) -> None:
        """End the child and the server."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(3 * GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self._folder.cleanup()
