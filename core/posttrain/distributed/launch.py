"""Launch of a run's processes on this machine; when one fails all end, and its error is shown once."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from posttrain.errors import PosttrainError, RankLost, SettingsError, first_line
from posttrain.settings.secret_options import redacted

if TYPE_CHECKING:
    from posttrain.settings import DistributedSettings

#: Set in processes from ``launch``: they write a fatal error to a file instead of the terminal.
LAUNCHED = "POSTTRAIN_LAUNCHED"
#: Variables of torch's elastic agent in each process: its error file, the run's id, the number of restarts.
ERROR_FILE, RUN_ID, RESTARTS = "TORCHELASTIC_ERROR_FILE", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"
#: Seconds for the other processes to end by themselves after one has failed.
GRACE = 5
#: Program of each process.
PROGRAM = ("-m", "posttrain.cli.main")
#: Lines shown of a failed process's output.
SHOWN = 30


def wanted(settings: DistributedSettings) -> bool:
    """Return whether this process must start others: several are wanted, and no launcher started this one."""
    from posttrain.distributed.world import find_world

    if ERROR_FILE in os.environ or os.environ.get("WORLD_SIZE"):
        return False
    if settings.nnodes != "1" or settings.rdzv_endpoint is not None:
        return True  # also inside a Slurm job of one task per machine
    return find_world() is None and (settings.nproc > 1 or settings.max_restarts > 0)


def launch(arguments: list[str], settings: DistributedSettings, run: str, program: tuple[str, ...] = PROGRAM) -> int:
    """Run ``posttrain ARGUMENTS`` in ``settings.nproc`` processes here, together with those of other machines.

    Returns 0, or the exit code of the process that failed first, after showing its error. The others end within
    ``GRACE`` seconds. ``run`` is the run directory.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, launch_agent

    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed"):  # its failure reports hide the failure
            logging.getLogger(name).setLevel(logging.CRITICAL)
    logs = Path(tempfile.mkdtemp(prefix="posttrain-"))
    first = 0 if settings.node_rank in (None, 0) else -1
    quiet = {local: Std.NONE if local == first else Std.ALL for local in range(settings.nproc)}
    low, high = _nodes(settings)
    config = LaunchConfig(
        min_nodes=low,
        max_nodes=high,
        nproc_per_node=settings.nproc,
        max_restarts=settings.max_restarts,
        logs_specs=DefaultLogsSpecs(str(logs), redirects=quiet),
        **_rendezvous(settings, high),
        **_left_to_us(LaunchConfig),
    )
    os.environ[LAUNCHED] = str(os.getpid())
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(GRACE))
    if low != high:  # machines joining or leaving is no restart; only a new store lacks those that have left
        os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // settings.nproc)))
    forwarder = Forwarder()
    try:
        with forwarder.listening():
            launch_agent(config, sys.executable, [*program, *arguments])
        return 0
    except ChildFailedError as error:
        if forwarder.signal and all(failure.exitcode == -signal.SIGTERM for failure in error.failures.values()):
            return 128 + int(forwarder.signal)  # asked before they had begun
        return _report(error.failures, logs, run)
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        return 128 + int(error.sigval)
    except RendezvousError as error:
        raise SettingsError(
            f"The machines did not find each other at '{settings.rdzv_endpoint}': {first_line(error)} Start "
            f"the same command on all {settings.nnodes} machines, with an endpoint HOST:PORT that each can reach."
        ) from None
    finally:
        del os.environ[LAUNCHED]
        shutil.rmtree(logs, ignore_errors=True)


class Forwarder:
    """Passes SIGTERM and the first Ctrl-C on to the ranks, which finish their step; kills them at the second Ctrl-C."""

    def __init__(self) -> None:
        self.signal = 0

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals inside a block."""
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again = self.signal and number == signal.SIGINT
        self.signal = self.signal or number
        for rank in _ranks():
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank, signal.SIGKILL if again else signal.SIGTERM)
        if again:
            raise KeyboardInterrupt


def _ranks() -> list[int]:
    """Return the process ids of the ranks that this process started."""
    import psutil

    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if ERROR_FILE in child.environ():
                found.append(child.pid)
    return found


def _left_to_us(config: type) -> dict[str, Any]:
    """Return options that keep torch's agent, where it has them, from killing the ranks at signals handled here."""
    known = {field.name for field in dataclasses.fields(config)}
    return {"signals_to_handle": "SIGHUP,SIGQUIT"} if "signals_to_handle" in known else {}


def _nodes(settings: DistributedSettings) -> tuple[int, int]:
    low, _, high = settings.nnodes.partition(":")
    if not low.isdigit() or (high and not high.isdigit()) or not 1 <= int(low) <= int(high or low):
        raise SettingsError(f"nnodes is '{settings.nnodes}', expected a number of machines such as 2, or a range 1:4.")
    if int(high or low) > 1 and settings.rdzv_endpoint is None:
        raise SettingsError(
            f"{settings.nnodes} machines need a place to find each other: --rdzv-endpoint HOST:PORT, HOST one of them."
        )
    return int(low), int(high or low)


def _rendezvous(settings: DistributedSettings, nodes: int) -> dict[str, Any]:
    """Return how the machines meet. A given rank needs torch's static backend, which cannot restart across machines."""
    if settings.rdzv_endpoint is None:
        return {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": uuid.uuid4().hex}
    if settings.node_rank is not None and not settings.max_restarts:
        configs = {"rank": settings.node_rank}
        backend = "static"
    else:
        configs = {} if settings.node_rank is None else {"is_host": settings.node_rank == 0}
        backend = "c10d"
    # The same on every machine: all must use one run id.
    run_id = os.environ.get("SLURM_JOB_ID", f"posttrain-{nodes}")
    meet = {"rdzv_backend": backend, "rdzv_endpoint": settings.rdzv_endpoint, "rdzv_configs": configs}
    return meet | {"run_id": run_id}


def _report(failures: dict[int, Any], logs: Path, run: str) -> int:
    """Show the error of the process that failed first, and return its exit code."""
    told = {rank: _told(failure) for rank, failure in failures.items()}
    # The failed process is neither one that only lost contact with another, nor one that was ended because of it.
    rank = min(
        failures,
        key=lambda r: (
            bool(told[r].get("lost")),
            not told[r] and failures[r].exitcode == -signal.SIGTERM,
            told[r].get("time", failures[r].timestamp),
        ),
    )
    failure, cause = failures[rank], told[rank]
    if "message" in cause:
        alike = rank == 0 or all(other.get("message") == cause["message"] for other in told.values())
        print(cause["traceback"], end="", file=sys.stderr)
        print(cause["message"] if alike else f"rank {rank}: {cause['message']}", file=sys.stderr)
        return int(cause["exit_code"])
    hint = ""
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        ended = f"was ended by {name}"
        hint = " The system does so when memory is short." if name == "SIGKILL" else ""
    else:
        ended = f"ended with exit code {failure.exitcode}"
        for file in sorted(logs.rglob(f"{failure.local_rank}/stderr.log"))[-1:]:
            text = file.read_text(encoding="utf-8", errors="replace")
            print("".join(text.splitlines(keepends=True)[-SHOWN:]), end="", file=sys.stderr)
    print(
        f"Rank {rank} {ended}; the others were ended too.{hint} Continue from the last checkpoint with: posttrain "
        f"resume {run}",
        file=sys.stderr,
    )
    return 1


def _told(failure: Any) -> dict[str, Any]:
    """Read a process's own record by ``write_error_file``; empty where there is none."""
    try:
        return json.loads(Path(failure.error_file).read_text(encoding="utf-8"))["posttrain"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def write_error_file(error: BaseException, exit_code: int) -> bool:
    """Write the error to the file that torch's elastic agent reads; return True if ``launch`` will show it.

    Under torchrun itself the file gives its report the right root cause.
    """
    file = os.environ.get(ERROR_FILE)
    if not file:
        return False
    known = isinstance(error, PosttrainError)
    text = redacted(str(error) if known else f"{type(error).__name__}: {error}")
    stack = "" if known else redacted("".join(traceback.format_exception(error)))
    extra = {"py_callstack": stack, "timestamp": str(int(time.time()))}
    word: dict[str, dict[str, Any]] = {"message": {"message": text, "extraInfo": extra}}
    word["posttrain"] = {"message": text, "exit_code": exit_code, "traceback": stack, "time": time.time()}
    word["posttrain"]["lost"] = isinstance(error, RankLost)
    with contextlib.suppress(OSError):  # otherwise only the exit code tells
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(json.dumps(word), encoding="utf-8")
    return LAUNCHED in os.environ
