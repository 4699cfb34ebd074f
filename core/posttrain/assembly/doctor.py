"""Findings of ``posttrain doctor``: hardware, packages, strategies, the sandbox, and memory per strategy."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from posttrain.assembly.config import read_file, resolve
from posttrain.assembly.estimate import Load, estimate, free_bytes, in_mb, peak, sizes_of
from posttrain.assembly.models import from_runs
from posttrain.assembly.plan import fitted, memory_of
from posttrain.catalogue import methods
from posttrain.catalogue.defaults import method_options
from posttrain.distributed.requirements import findings
from posttrain.distributed.select import planned
from posttrain.errors import DependencyError, SettingsError
from posttrain.models.device import choose_device
from posttrain.network.kernels.cpu.matmul import bfloat16_gain
from posttrain.runs import facts
from posttrain.sandbox import execute, memory
from posttrain.settings import Settings

#: Strategies whose memory is compared, deepspeed by its stages.
COMPARED = ("single", "qlora", "ddp", "fsdp", "zero-1", "zero-2", "zero-3")


def examine(config: str | None, model: str | None, processes: int | None) -> dict[str, Any]:
    """Return the report, as ``--json`` prints it. Raises SettingsError for an invalid file or number."""
    if processes is not None and processes < 1:
        raise SettingsError(f"nproc is {processes}, expected at least 1.")
    settings, method, options = _settings(config, model)
    settings = from_runs(settings)
    count = processes or (
        settings.distributed.nproc if settings.distributed.nproc > 1 else max(2, torch.cuda.device_count())
    )
    rows = findings(count)
    wanted = None
    if settings.distributed.strategy is not None:
        row = next(row for row in rows if row.strategy == settings.distributed.strategy)
        wanted = dataclasses.asdict(row)
    return {
        "hardware": facts.hardware()
        | {
            "free_memory_gib": round(free_bytes(torch.device("cpu")) / 2**30, 1),
            "bfloat16_gain_on_the_cpu": round(bfloat16_gain(), 1),
        },
        "packages": facts.versions(),
        "strategies": [dataclasses.asdict(row) for row in rows],
        "wanted": wanted,
        "sandbox": _sandbox(),
        "memory": _memory(settings, method, options, count) if settings.model.model else None,
    }


def _sandbox() -> dict[str, Any]:
    """Return whether programs of a model can run here, and what bounds their memory, or why they cannot."""
    try:
        return {"works": True, "why": f"memory is limited by {memory.SHOWN[execute.ready()]}"}
    except DependencyError as error:
        return {"works": False, "why": str(error)}


def _settings(config: str | None, model: str | None) -> tuple[Settings, methods.Method | None, dict[str, Any]]:
    if config is None:
        return Settings(model=model or ""), None, {}
    file = read_file(config)
    name = file.get("method")
    if not isinstance(name, str):
        raise SettingsError(f"{config}: method is {name!r}, expected the name of a method.")
    method = methods.load(name)
    flags = {} if model is None else {"model": model}
    settings, options = resolve(method.card, method_options(method.card), file, flags, config)
    return settings, method, options


def _memory(settings: Settings, method: methods.Method | None, options: dict[str, Any], count: int) -> dict[str, Any]:
    device = choose_device(settings.model)
    model = sizes_of(settings.model)
    free = free_bytes(device)
    rows = []
    for name in dict.fromkeys((*COMPARED, planned(settings.distributed)[0])):
        processes = 1 if name in ("single", "qlora") else count
        own, sizes = settings, model
        if name == "qlora":
            own = settings.replace(lora=True, quantize=settings.model.quantize or "nf4")
            sizes = sizes_of(own.model)  # only an adapter is trained
        if method is None:
            found = estimate(sizes, own, device, Load(), name, processes)
        else:
            found = memory_of(method, method.config(options, own), own, sizes, device, name, processes)
        # processes of one machine share its memory; a GPU belongs to one process
        needed = peak(found) * (1 if device.type == "cuda" else processes)
        fits = "yes" if needed <= free else f"no: {round((needed - free) / 2**20):,} MB too much"
        if name == planned(settings.distributed)[0] and processes == 1:
            config = {} if method is None else method.config(options, own)
            chosen = fitted(method, config, own, sizes)
            fits += f", with {chosen.flags}" if chosen.flags else ""
        rows.append({"strategy": name, "processes": processes, "memory_mb": in_mb(found), "fits": fits})
    return {
        "model": settings.model.model,
        "parameters": model.parameters,
        "where": "each GPU" if device.type == "cuda" else "this machine, for all processes together",
        "free_mb": round(free / 2**20),
        "strategies": rows,
    }
