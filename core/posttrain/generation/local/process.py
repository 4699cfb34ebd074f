"""The ``hf`` backend in a separate process on this machine, with its own copy of the weights.

It samples while the trainer trains, and takes new weights between two tokens. Weights travel as a safetensors file in
memory (``/dev/shm``) where that exists.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from multiprocessing import Pipe
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from posttrain.contract.generation import Abilities, Completion, Health, Sampling, Weights
from posttrain.errors import GeneratorLost
from posttrain.generation.local.hf import refuse_images
from posttrain.generation.local.worker import Start
from posttrain.generation.weights import whole
from posttrain.network.image_reader import reader_of
from posttrain.runs.owner import started

if TYPE_CHECKING:
    from posttrain.training.run import Compute

#: Seconds after which a process that was asked to end is killed.
PATIENCE = 5.0
#: Seconds without new weights after which a folder in memory may have lost its owner.
FORSAKEN = 3600.0


class ProcessGenerator:
    """Completes prompts in another process; calls may come from any thread."""

    def __init__(self, start: Callable[[Path], Start]):
        """Start the process; ``start`` may write weights into the folder that it is given. Waits until it is ready."""
        self.abilities = Abilities(own_weights=True, ahead=True, mid_sequence=True, adapters=True, exact=True)
        self._start = start
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._launch()

    def _launch(self) -> None:
        memory = Path("/dev/shm")
        place = memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())
        _sweep(place)
        self._folder = tempfile.TemporaryDirectory(prefix=_prefix(), dir=place, ignore_cleanup_errors=True)
        ours, theirs = Pipe()
        start = dataclasses.replace(self._start(Path(self._folder.name)), folder=Path(self._folder.name))
        self.abilities = dataclasses.replace(self.abilities, images=reader_of(start.tokenizer) is not None)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "posttrain.generation.local.worker", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env={**os.environ, "OMP_NUM_THREADS": str(start.threads)},
        )
        theirs.close()
        self._connection = ours
        self._open: dict[int, Future[Any]] = {0: Future()}
        ready = self._open[0]
        self._reader = threading.Thread(target=self._read, args=(ours, self._open, self._process), daemon=True)
        self._reader.start()
        ours.send_bytes(pickle.dumps(start))
        ready.result()

    @staticmethod
    def _read(connection: Any, waiting: dict[int, Future[Any]], process: subprocess.Popen[bytes]) -> None:
        """Hand answers to their callers; when the other side is gone, every caller gets the error."""
        try:
            while True:
                number, fine, result = pickle.loads(connection.recv_bytes())
                if fine:
                    waiting.pop(number).set_result(result)
                else:
                    waiting.pop(number).set_exception(result)
        except (EOFError, OSError):
            code = process.wait()
            for number in list(waiting):
                waiting.pop(number).set_exception(GeneratorLost(_exit_message(code)))

    def _ask(self, what: str, *arguments: Any) -> Any:
        future: Future[Any] = Future()
        with self._lock:
            number = next(self._numbers)
            self._open[number] = future
            try:
                self._connection.send_bytes(pickle.dumps((number, what, arguments)))
            except OSError:
                if self._open.pop(number, None) is not None:  # otherwise the reader has informed every caller
                    raise GeneratorLost(_exit_message(self._process.wait())) from None
        return future.result()

    def generate(
        self,
        prompts: list[Tensor],
        sampling: Sampling,
        seeds: list[list[int]],
        images: list[list[Any]] | None = None,
    ) -> list[list[Completion]]:
        """Complete each prompt ``(n,)`` once per seed."""
        if not self.abilities.images:
            refuse_images(images)
        return self._ask("generate", prompts, sampling, seeds, images)

    def accept(self, weights: Weights) -> None:
        """Copy the tensors; return once the process samples from them."""
        file = Path(self._folder.name) / f"{weights.version}.safetensors"
        save_file(_plain(weights.tensors()), file)
        try:
            self._ask("accept", (weights.version, weights.kind, None), file)
        finally:
            file.unlink(missing_ok=True)

    def pause(self) -> None:
        """Stop between two tokens."""
        self._ask("pause")

    def resume(self) -> None:
        """Continue sampling."""
        self._ask("resume")

    def drain(self) -> None:
        """Wait until every completion has ended."""
        self._ask("drain")

    def health(self) -> Health:
        """Return the process's own report."""
        try:
            return self._ask("health")
        except GeneratorLost as lost:
            return Health(-1, alive=False, facts={"error": str(lost)})

    def revive(self) -> None:
        """Start another process in place of one that is gone."""
        self.close()
        self._launch()

    def close(self) -> None:
        """End the process."""
        with self._lock, contextlib.suppress(OSError):  # it may be gone already
            self._connection.send_bytes(pickle.dumps((next(self._numbers), "close", ())))
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(PATIENCE)
        self._connection.close()
        self._folder.cleanup()


def _prefix() -> str:
    """Build the start of a folder's name from its owner: process id and the system's count of when it started."""
    return f"posttrain-{os.getpid()}-{(started(os.getpid()) or '0').split()[-1]}-"


def _sweep(place: Path) -> None:
    """Delete the folders of trainers that were killed together with their sampling processes."""
    for folder in place.glob("posttrain-*-*-*"):
        words = folder.name.split("-")
        with contextlib.suppress(OSError):
            old = time.time() - folder.stat().st_mtime > FORSAKEN
            if old and words[1].isdigit() and (started(int(words[1])) or "").split()[-1:] != [words[2]]:
                shutil.rmtree(folder, ignore_errors=True)


def _plain(tensors: Iterator[tuple[str, Tensor]]) -> dict[str, Tensor]:
    return {name: whole(tensor).contiguous().cpu() for name, tensor in tensors}


def _exit_message(code: int) -> str:
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    return (
        f"The process that samples {how}. Look at its last lines above and at the memory of this machine; "
        "--max-staleness 0 without --generation-process samples in the trainer's own process."
    )


def start_of(compute: Compute, threads: int, folder: Path) -> Start:
    """Describe the model for a sampling process: by its name, or by class and weights where it has none."""
    settings = compute.settings
    settings = settings.replace(
        device=settings.generation.generation_device or settings.model.device, gradient_checkpointing=False
    )
    build = file = None
    if compute.model_in_memory:
        inner = compute.policy.inner
        build = (type(inner), copy.deepcopy(inner.config), next(inner.parameters()).dtype)
        file = folder / "start.safetensors"
        save_file(_plain(compute.policy.model.named_parameters()), file)
    with compute.autocast():
        autocast = torch.is_autocast_enabled(compute.policy.device.type)
    return Start(settings, compute.tokenizer, compute.stop_ids, threads, autocast, build, file)
