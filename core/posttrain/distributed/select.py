"""Which strategy a run gets, and why. A strategy that cannot be had is an error; none takes another's place."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

from posttrain.distributed.launch import LAUNCHED
from posttrain.distributed.world import World, find_world, join
from posttrain.errors import SettingsError
from posttrain.training.strategy import Strategy

if TYPE_CHECKING:
    from posttrain.settings import DistributedSettings, Settings

#: Name -> module and what makes it of the run's settings; imported when chosen.
STRATEGIES = {
    "single": "posttrain.distributed.single:Single",
    "qlora": "posttrain.distributed.qlora:qlora",
    "ddp": "posttrain.distributed.ddp:DistributedData",
    "fsdp": "posttrain.distributed.fsdp:FullyShardedData",
    "deepspeed": "posttrain.distributed.deepspeed:Deepspeed",
}


def choose_strategy(settings: Settings) -> tuple[Strategy, str]:
    """The strategy, its processes joined, and one line saying why it was chosen."""
    world = find_world() or World(0, 1, 0, "alone")
    name, why = _name(settings.distributed, world)
    _check(name, settings.distributed, world)
    if name != "single" and (world.size > 1 or name != "qlora"):
        join(settings.model.device)
    module, _, kind = STRATEGIES[name].partition(":")
    return getattr(importlib.import_module(module), kind)(
        settings.distributed, settings.model, settings.optim
    ), f"{name}: {why}"


def planned(settings: DistributedSettings) -> tuple[str, int]:
    """Strategy and processes of a run with these settings, before any of them is started; ZeRO with its stage."""
    world = find_world()
    nodes = int(settings.nnodes.partition(":")[0]) if settings.nnodes[:1].isdigit() else 1
    count = world.size if world is not None else settings.nproc * nodes
    name: str = settings.strategy or ("ddp" if count > 1 else "single")
    if name == "deepspeed":
        from posttrain.distributed.zero_config import stage_of

        name = f"zero-{stage_of(settings)}"
    return name, count


def _name(settings: DistributedSettings, world: World) -> tuple[str, str]:
    count = "one process" if world.size == 1 else f"{world.size} processes"
    if world.size > 1 and LAUNCHED not in os.environ:
        count += f" started by {world.by}"
    if settings.strategy is not None:
        return settings.strategy, f"asked for, {count}"
    return ("ddp" if world.size > 1 else "single"), count


def _check(name: str, settings: DistributedSettings, world: World) -> None:
    if name == "single" and world.size > 1:
        raise SettingsError(f"Strategy 'single' runs one process, but {world.size} were started. Use --strategy ddp.")
    if world.size == 1 and settings.nproc > 1:
        raise SettingsError(
            f"Strategy '{name}' with {settings.nproc} processes starts from the command line: posttrain train ... "
            f"--nproc {settings.nproc}"
        )
    if name == "ddp" and world.size == 1:
        raise SettingsError(
            "Strategy 'ddp' shares the work among processes, and there is one. Start several with --nproc N, or leave "
            "the strategy out."
        )
