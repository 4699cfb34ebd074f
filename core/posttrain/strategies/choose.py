"""Which strategy a run gets, and why; starting the processes it wants."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from posttrain.errors import SettingsError
from posttrain.strategies.ddp import DistributedData
from posttrain.strategies.protocol import Strategy
from posttrain.strategies.single import Single

if TYPE_CHECKING:
    from posttrain.settings import Settings


def joined_world() -> int:
    """Processes of the launcher that started this one; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def choose(settings: Settings) -> tuple[Strategy, str]:
    """The strategy, and one line saying why."""
    world = joined_world()
    name = settings.strategy or ("ddp" if world > 1 else "single")
    if name == "single":
        if world > 1:
            raise SettingsError(f"Strategy 'single' runs one process, but {world} were started. Use --strategy ddp.")
        return Single(), "single: one process" if settings.strategy is None else "single: asked for"
    if world == 1 and settings.nproc > 1:
        raise SettingsError(
            "Strategy 'ddp' with several processes starts from the command line: posttrain train ... --nproc N."
        )
    if "MASTER_ADDR" not in os.environ:
        os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"})
    strategy = DistributedData(settings)
    return strategy, f"ddp: {strategy.world} processes"


def launch(arguments: list[str], processes: int) -> int:
    """Run ``posttrain ARGUMENTS`` in ``processes`` processes on this machine; the first failure ends all."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    # torchrun reads --nproc as an abbreviation of its own flag, wherever it stands
    own = [
        w
        for w, before in zip(arguments, ["", *arguments], strict=False)
        if not w.startswith("--nproc") and before != "--nproc"
    ]
    threads = max(1, (os.cpu_count() or 1) // processes)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    return subprocess.run([*command, "-m", "posttrain.cli.main", *own], env=environment, check=False).returncode
