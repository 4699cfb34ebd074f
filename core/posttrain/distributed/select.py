"""Choice of a run's strategy, with the reason. An unavailable strategy is an error, never replaced by another."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

from posttrain.distributed.launch import LAUNCHED
from posttrain.distributed.world import World, find_world, join
from posttrain.errors import SettingsError
from posttrain.training.strategy import Strategy

if TYPE_CHECKING:
    from posttrain.settings import DistributedSettings, ModelSettings, OptimSettings

#: Name -> module and constructor from the run's settings; imported when chosen.
STRATEGIES = {
    "single": "posttrain.distributed.single:Single",
    "qlora": "posttrain.distributed.qlora:qlora",
    "ddp": "posttrain.distributed.ddp:DistributedData",
    "fsdp": "posttrain.distributed.fsdp:FullyShardedData",
    "deepspeed": "posttrain.distributed.deepspeed:Deepspeed",
}


def choose_strategy(settings: DistributedSettings, model: ModelSettings, optim: OptimSettings) -> tuple[Strategy, str]:
    """Choose the strategy and join its processes; return it with one line saying why."""
    world = find_world() or World(0, 1, 0, "alone")
    name, why = _name(settings, world)
    _check(name, settings, world)
    if name != "single" and (world.size > 1 or name != "qlora"):
        join(model.device)
    module, _, kind = STRATEGIES[name].partition(":")
    return getattr(importlib.import_module(module), kind)(settings, model, optim), f"{name}: {why}"


def planned(settings: DistributedSettings) -> tuple[str, int]:
    """Return strategy and number of processes of a planned run, before any is started; ZeRO with its stage."""
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
