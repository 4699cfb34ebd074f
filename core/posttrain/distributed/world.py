"""Processes of a run from any launcher: torchrun, accelerate, MPI or Slurm, found in the environment."""

from __future__ import annotations

import datetime
import os
import re
import sys
import warnings
from dataclasses import dataclass

from posttrain.errors import RankLost, SettingsError, first_line

#: Launcher -> its variables for this process's rank, the number of processes, and the local rank.
LAUNCHERS = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    "mpirun": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    "mpiexec": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    "srun": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
}

#: Parts of gloo's messages about a process that has ended.
GONE = ("Connection closed by peer", "Connection reset", "gloo/transport", "Broken pipe")


@dataclass(frozen=True)
class World:
    """This process's ``rank`` of ``size``, its ``local`` rank on this machine, and the launcher."""

    rank: int
    size: int
    local: int
    by: str


def find_world() -> World | None:
    """Find the processes started together with this one; None where it is alone."""
    for name, (rank, size, local) in LAUNCHERS.items():
        if rank not in os.environ or size not in os.environ or (name == "srun" and _no_step()):
            continue
        world = World(int(os.environ[rank]), int(os.environ[size]), int(os.environ.get(local, 0)), name)
        if world.size > 1 or name == "torchrun":
            return world
    return None


def _no_step() -> bool:
    """Return whether this is a Slurm batch script itself: it has its job's variables, but is a single process."""
    return "SLURM_JOB_ID" in os.environ and not {"SLURM_STEP_ID", "MASTER_ADDR"} & set(os.environ)


def rank_here() -> int:
    """Return this process's rank; 0 where it is alone."""
    world = find_world()
    return 0 if world is None else world.rank


def join(device: str | None = None) -> World:
    """Join the process group of all processes, a group of one where this is alone; ``device`` as in the settings."""
    import torch
    import torch.distributed as dist

    world = find_world() or World(0, 1, 0, "alone")
    address, port = _meeting_point(world)
    names = {"RANK": world.rank, "WORLD_SIZE": world.size, "LOCAL_RANK": world.local}
    for name, value in {**names, "MASTER_ADDR": address, "MASTER_PORT": port}.items():
        os.environ.setdefault(name, str(value))
    if dist.is_initialized():
        return world
    backend = "nccl" if torch.cuda.is_available() and device != "cpu" else "gloo"
    if backend == "nccl":
        count = torch.cuda.device_count()
        if world.local >= count:
            raise SettingsError(
                f"Process {world.local} of this machine has no GPU of its own: {count} are here. Start {count} "
                "processes, or train on the CPU with CUDA_VISIBLE_DEVICES= --device cpu."
            )
        torch.cuda.set_device(world.local)
    try:
        store, rank, size = next(dist.rendezvous("env://"))
        # Torch's agent keeps one store through all restarts, with the addresses of dead processes.
        store = dist.PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=size, timeout=datetime.timedelta(minutes=30)
        )
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        raise SettingsError(
            f"Rank {world.rank} of {world.size} (started by {world.by}) cannot reach the others at {address}:{port}: "
            f"{first_line(error)} Set MASTER_ADDR and MASTER_PORT to a host and a free port of rank 0's."
        ) from None
    return world


def _meeting_point(world: World) -> tuple[str, int]:
    """Return where the processes meet: the launcher's address, else the job's first machine, a port from its number."""
    port = 0 if world.size == 1 else 29500
    if world.by == "srun":
        port = 20000 + int(os.environ.get("SLURM_JOB_ID", "0")) % 20000
    nodes = next((os.environ[n] for n in ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST") if n in os.environ), "")
    address = _first_host(nodes) if world.by == "srun" and nodes else "127.0.0.1"
    return os.environ.get("MASTER_ADDR", address), int(os.environ.get("MASTER_PORT", port))


def _first_host(nodes: str) -> str:
    """Return the first host of Slurm's short form: ``node[03-05,09],other`` begins with ``node03``."""
    match = re.match(r"([^,\[]+)(?:\[(\w+)[^\]]*\]([^,]*))?", nodes)
    return "".join(part or "" for part in match.groups()) if match else nodes


def quieten() -> None:
    """Silence all ranks but rank 0, except for errors."""
    if rank_here() == 0:
        return
    sys.stdout.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    warnings.simplefilter("ignore")
    os.environ["PYTHONWARNINGS"] = "ignore"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def lost_contact(error: BaseException) -> RankLost | None:
    """Return a RankLost if ``error`` came from a collective operation that another process left; None otherwise."""
    from torch.distributed import DistBackendError, DistError

    text = str(error)
    gone = isinstance(error, DistBackendError | DistError)
    if not gone and not (isinstance(error, RuntimeError) and any(sign in text for sign in GONE)):
        return None
    first = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    return RankLost(
        f"Rank {rank_here()} lost the others: {first} The rank that ended first says why. Continue from the last "
        "checkpoint with: posttrain resume RUN"
    )
