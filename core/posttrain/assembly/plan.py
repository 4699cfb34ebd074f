"""``--dry-run``: everything resolved and checked without loading weights, and an estimate of the memory."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from posttrain.assembly.data import Prepared, prepare_data
from posttrain.assembly.estimate import (
    Load,
    Sizes,
    estimate,
    held_bytes,
    in_mb,
    peak,
    sizes_of,
    trained_numbers,
    weight_bytes,
)
from posttrain.assembly.fit import Fit, fit
from posttrain.assembly.objects import InMemory
from posttrain.catalogue.methods import Method
from posttrain.catalogue.modifiers import described
from posttrain.distributed.select import planned
from posttrain.errors import ModelError, SettingsError
from posttrain.models.device import choose_device, choose_dtype
from posttrain.settings import DataSettings, LengthSettings, ModelSettings, RolloutsSettings, Settings
from posttrain.training.source import count_steps, order_of


def make_plan(method: Method, config: Any, settings: Settings, objects: InMemory) -> dict[str, Any]:
    """Return steps, tokens, sizes and memory by purpose in MB, as a dict for printing."""
    data = prepare_data(method, config, settings, objects)
    device = choose_device(settings.model)
    model = sizes_of(settings.model)
    strategy, processes = planned(settings.distributed)
    longest = longest_example(settings, data, method.card.online)
    found = fitted(method, config, settings, model, longest)
    settings = found.settings
    steps, tokens = _length(method.card.online, settings.length, settings.rollouts, settings.data, data)
    card = method.card
    return {
        "method": f"{card.name} {card.version} ({card.tier})",
        "modifiers": [_words(one) for one in described(method)],
        "model": {"name": settings.model.model, "family": model.family, "parameters": model.parameters},
        "trained_parameters": trained_numbers(model, settings.model),
        "reach": {kind: round(share, 4) for kind, share in model.reach.items()},
        "device": str(device),
        "weights": str(choose_dtype(settings.model, device)).removeprefix("torch."),
        "data": data.report,
        "notes": [*data.notes, *([found.note] if found.note else [])],
        "rewards": [f"{reward.name} x {reward.weight:g}" for reward in data.rewards],
        "steps": steps,
        "tokens_per_step": tokens,
        "strategy": strategy if processes == 1 else f"{strategy}, {processes} processes",
        "memory_mb": in_mb(memory_of(method, config, settings, model, device, strategy, processes, longest)),
        "options": dataclasses.asdict(config),
    }


def fitted(method: Method | None, config: Any, settings: Settings, model: Sizes, longest: int = 0) -> Fit:
    """Fit a run into the memory that is free now (``fit.fit``).

    Several processes, which would have to agree, and passes of so many rows are left as they are.
    """
    device, (strategy, processes) = choose_device(settings.model), planned(settings.distributed)
    if processes > 1 or strategy not in ("single", "qlora") or settings.memory.micro_batch_size is not None:
        return Fit(settings, {})
    held = held_bytes(settings.model.lora) if device.type == "cpu" else 0.0  # part of the estimate

    def needed(tried: Settings) -> float:
        if method is None:
            return peak(estimate(model, tried, device, Load(longest=longest), strategy)) - held
        return peak(memory_of(method, config, tried, model, device, strategy, 1, longest)) - held

    return fit(settings, device, method is not None and method.card.online, longest, needed)


def fit_run(method: Method, config: Any, settings: Settings, objects: InMemory, data: Prepared) -> Settings:
    """Return the settings with which a new run fits into memory; the choice is one of the run's notes.

    A model in memory is there already, and of one whose sizes are not known here nothing is chosen.
    """
    if objects.model is not None:
        return settings
    try:
        model = sizes_of(settings.model)
    except ModelError:
        return settings  # loading says what is wrong, and some families have no estimate
    found = fitted(method, config, settings, model, longest_example(settings, data, method.card.online))
    data.notes += [found.note] if found.note else []
    return found.settings


def longest_example(settings: Settings, data: Prepared, online: bool) -> int:
    """Return the tokens of the longest example, of a rollout with the longest answer; 0 for streamed rows."""
    if settings.data.streaming or not len(data.train):
        return 0
    return int(data.train.lengths.max()) + (settings.data.max_new_tokens if online else 0)


def _words(modifier: dict[str, Any]) -> str:
    options = ", ".join(f"{key}={value}" for key, value in modifier["options"].items())
    return f"{modifier['name']} {modifier['version']}" + (f" ({options})" if options else "")


def _length(
    online: bool, length: LengthSettings, rollouts: RolloutsSettings, rows: DataSettings, data: Prepared
) -> tuple[int, int | str]:
    """Return the steps of the run and the tokens of a step."""
    if rows.streaming:
        if length.steps is None:
            raise SettingsError("Streaming does not know how many rows there are. Say how long to train: --steps N.")
        return length.steps, "unknown: streaming"
    per_epoch = order_of(len(data.train), rows, length).per_epoch
    if online:
        per_epoch *= rollouts.updates_per_rollout * rollouts.minibatches_per_rollout
        prompts = length.batch_size * rollouts.group_size
        longest = rows.max_new_tokens + data.report["tokens"] // max(1, data.report["examples"])
        return count_steps(per_epoch, length), f"at most about {prompts * longest}"
    mean = data.report["tokens"] / max(1, data.report["examples"])
    return count_steps(per_epoch, length), round(mean * min(length.batch_size, len(data.train)))


def _teacher(name: str | None, settings: ModelSettings, model: Sizes, device: torch.device) -> float:
    """Return the bytes of the teacher's own weights: none where it is the policy itself, or on a server."""
    if name == "average":
        return trained_numbers(model, settings) * 4.0
    if name is None or name == "live" or name.startswith(("http://", "https://")) or (name == "base" and settings.lora):
        return 0.0
    own = settings if name == "base" else dataclasses.replace(settings, model=name)
    return weight_bytes(sizes_of(own), own, device)


def memory_of(
    method: Method,
    config: Any,
    settings: Settings,
    model: Sizes,
    device: torch.device,
    strategy: str,
    processes: int,
    longest: int = 0,
) -> dict[str, float]:
    """Return the bytes by purpose of one process (see ``estimate``)."""
    online = method.card.online
    taught = bool(method.card.needs_now("teacher", config))
    load = Load(
        online=online,
        reference=bool(method.card.needs_now("reference", config)),
        teacher_bytes=_teacher(settings.teacher.teacher_model, settings.model, model, device) if taught else 0.0,
        draft_bytes=_teacher(settings.generation.draft_model, settings.model, model, device) if online else 0.0,
        longest=longest,
    )
    return estimate(model, settings, device, load, strategy, processes)
