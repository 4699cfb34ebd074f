"""Process of ``process.ProcessGenerator``: a copy of the model that samples on request.

Between two tokens it reads new messages: further prompts join the running ones, new weights make the next token, a
pause stops everything. It ends when the other side is gone.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import signal
import sys
from collections import deque
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from posttrain.contract.generation import Health, Sampling, Weights
from posttrain.errors import PosttrainError, RunFailed
from posttrain.generation.local.decoder import Decoder
from posttrain.generation.local.draft import load_speculation
from posttrain.generation.local.hf import HfGenerator
from posttrain.generation.local.sample import Sample
from posttrain.models.load import load_policy
from posttrain.network import attention
from posttrain.settings import Settings


@dataclass(frozen=True)
class Start:
    """Description of the model copy that the process builds; it travels through pickle."""

    settings: Settings
    tokenizer: Any
    stop_ids: set[int]
    threads: int
    autocast: bool
    build: tuple[type, Any, torch.dtype] | None = None
    """Class, configuration and dtype of a model without a name; ``weights`` then holds all of it."""
    weights: Path | None = None
    folder: Path | None = None
    """Folder through which weights come; deleted with this process, should the other side be killed."""


@dataclass
class Asked:
    """Open call of ``generate``."""

    number: int
    sampling: Sampling
    groups: list[Any]
    samples: list[list[Sample]] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """Whether every completion has ended."""
        return not any(sample.alive for own in self.samples for sample in own)


class Worker:
    """Answers messages ``(number, what, arguments)`` with ``(number, fine, result)``, in any order."""

    def __init__(self, connection: Connection, generator: HfGenerator, autocast: bool):
        self.connection, self.generator, self.autocast = connection, generator, autocast
        self.asked: list[Asked] = []
        self.waiting: deque[Asked] = deque()
        self.draining: list[int] = []
        self.paused = False
        self.decoder: Decoder | None = None

    def run(self) -> None:
        """Serve until the other side closes."""
        device = next(self.generator.model.parameters()).device.type
        with self.generator.sampling(), torch.autocast(device, torch.bfloat16, enabled=self.autocast):
            while True:
                self._begin()
                busy = bool(self.asked) and not self.paused
                while not busy or self.connection.poll(0):
                    self._handle(*pickle.loads(self.connection.recv_bytes()))
                    self._begin()
                    busy = bool(self.asked) and not self.paused
                self._advance()

    def _handle(self, number: int, what: str, arguments: tuple[Any, ...]) -> None:
        if what == "close":
            raise EOFError
        try:
            if what == "generate":
                prompts, sampling, seeds, images = arguments
                groups, samples = self.generator.groups(prompts, sampling, seeds, images)
                self.waiting.append(Asked(number, sampling, groups, samples))
            elif what == "accept":
                weights, file = arguments
                self._accept(weights, file)
                self._answer(number, None)
            elif what == "drain":
                self.draining.append(number)
                self._tell_drained()
            elif what == "health":
                self._answer(number, self._health())
            else:
                self.paused = what == "pause"
                self._answer(number, None)
        except PosttrainError as error:
            self._answer(number, error, fine=False)

    def _accept(self, weights: tuple[int, str, Any], file: Path) -> None:
        version, kind, adapter = weights
        tensors = load_file(file)
        self.generator.accept(Weights(version, kind, lambda: iter(tensors.items()), adapter=adapter))  # type: ignore[arg-type]  # kinds come from Weights
        torch.clear_autocast_cache()  # it holds casts of the old weights
        if self.decoder is not None:
            self.decoder.renew(version)

    def _begin(self) -> None:
        """Start waiting calls whose settings agree with the running ones; others wait until these are done."""
        while self.waiting and (self.decoder is None or _alike(self.waiting[0].sampling, self.decoder.sampling)):
            call = self.waiting.popleft()
            if self.decoder is None:
                self.decoder = self.generator.decoder(call.sampling)
            self.asked.append(call)
            self.decoder.add(call.groups)

    def _advance(self) -> None:
        assert self.decoder is not None
        try:
            self.decoder.advance()
        except (PosttrainError, RuntimeError) as error:  # RuntimeError: out of memory, and other errors of torch
            told = error if isinstance(error, PosttrainError) else RunFailed(f"Sampling failed: {error}")
            for call in self.asked:
                self._answer(call.number, told, fine=False)
            self.asked, self.decoder = [], None
        for call in [call for call in self.asked if call.done]:
            self.asked.remove(call)
            tokenizer = self.generator.tokenizer
            self._answer(call.number, [[sample.completion(tokenizer) for sample in own] for own in call.samples])
        if not self.asked:
            self.decoder = None
        self._tell_drained()

    def _tell_drained(self) -> None:
        if not self.asked and not self.waiting:
            for number in self.draining:
                self._answer(number, None)
            self.draining = []

    def _health(self) -> Health:
        growing = [s for call in self.asked for own in call.samples for s in own if s.alive]
        running = sum(bool(sample.ids) for sample in growing)
        later = sum(len(own) for call in self.waiting for own in call.samples)
        facts = {"process": os.getpid()} | self.generator.health().facts
        return Health(self.generator.version, True, running, len(growing) - running + later, facts)

    def _answer(self, number: int, result: Any, fine: bool = True) -> None:
        self.connection.send_bytes(pickle.dumps((number, fine, result)))


def _alike(one: Sampling, other: Sampling) -> bool:
    """Whether tokens are chosen alike; each sample has a limit of its own."""
    return replace(one, max_new_tokens=1) == replace(other, max_new_tokens=1)


def build(start: Start) -> HfGenerator:
    """Build the generator around this process's copy of the model."""
    torch.set_num_threads(start.threads)
    settings = start.settings
    model: Any = settings.model.model
    if start.build is not None:
        kind, config, dtype = start.build
        if config._attn_implementation == attention.NAME:
            config._attn_implementation = "sdpa"  # the value with which a model is loaded; loading chooses ours again
        model = kind(config).to(dtype)
    policy = load_policy(model, start.tokenizer, settings.model).policy
    own = settings.generation
    generator = HfGenerator(
        policy.model,
        start.tokenizer,
        start.stop_ids,
        own.generation_batch_size,
        own.generation_cache_tokens,
        own_weights=True,
        prefix_tokens=own.generation_prefix_tokens,
        routers=policy.routers if settings.rollouts.router_replay else None,
        speculation=load_speculation(own, settings.model, start.tokenizer, policy.model),
    )
    if start.weights is not None:
        tensors = load_file(start.weights)
        generator.accept(Weights(-1, "full", lambda: iter(tensors.items())))
    return generator


def main() -> None:
    """Run ``python -m posttrain.generation.local.worker DESCRIPTOR``: number of the open socket to the parent."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # terminals and schedulers signal both sides; the trainer decides
    connection = Connection(int(sys.argv[1]))
    with contextlib.suppress(EOFError, ConnectionError):  # the parent is gone: end too
        start: Start = pickle.loads(connection.recv_bytes())
        try:
            _serve(connection, start)
        finally:
            if start.folder is not None:
                shutil.rmtree(start.folder, ignore_errors=True)


def _serve(connection: Connection, start: Start) -> None:
    try:
        generator = build(start)
    except PosttrainError as error:
        connection.send_bytes(pickle.dumps((0, False, error)))
        return
    connection.send_bytes(pickle.dumps((0, True, None)))
    Worker(connection, generator, start.autocast).run()


if __name__ == "__main__":
    main()
