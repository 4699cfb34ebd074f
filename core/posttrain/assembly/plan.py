"""``--dry-run``: everything resolved and checked, no weights loaded, and an estimate of the memory it would take."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from posttrain.assembly.data import Prepared, prepare_data
from posttrain.assembly.estimate import Load, Sizes, estimate, in_mb, sizes_of, trained_numbers, weight_bytes
from posttrain.assembly.objects import InMemory
from posttrain.catalogue.methods import Method
from posttrain.catalogue.modifiers import described
from posttrain.distributed.select import planned
from posttrain.errors import SettingsError
from posttrain.models.load import choose_device, choose_dtype
from posttrain.settings import ModelSettings, Settings
from posttrain.training.source import count_steps, order_of


def make_plan(method: Method, config: Any, settings: Settings, objects: InMemory) -> dict[str, Any]:
    """Steps, tokens, sizes and memory per role in MB, as a dict that prints as it is."""
    data = prepare_data(method, config, settings, objects)
    device = choose_device(settings.model)
    model = sizes_of(settings.model)
    strategy, processes = planned(settings.distributed)
    steps, tokens = _length(method, settings, data)
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
        "notes": data.notes,
        "rewards": [f"{reward.name} x {reward.weight:g}" for reward in data.rewards],
        "steps": steps,
        "tokens_per_step": tokens,
        "strategy": strategy if processes == 1 else f"{strategy}, {processes} processes",
        "memory_mb": in_mb(memory_of(method, config, settings, model, device, strategy, processes)),
        "options": dataclasses.asdict(config),
    }


def _words(modifier: dict[str, Any]) -> str:
    options = ", ".join(f"{key}={value}" for key, value in modifier["options"].items())
    return f"{modifier['name']} {modifier['version']}" + (f" ({options})" if options else "")


def _length(method: Method, settings: Settings, data: Prepared) -> tuple[int, int | str]:
    if settings.data.streaming:
        if settings.length.steps is None:
            raise SettingsError("Streaming does not know how many rows there are. Say how long to train: --steps N.")
        return settings.length.steps, "unknown: streaming"
    per_epoch = order_of(len(data.train), settings.data, settings.length).per_epoch
    if method.card.online:
        per_epoch *= settings.rollouts.updates_per_rollout * settings.rollouts.minibatches_per_rollout
        prompts = settings.length.batch_size * settings.rollouts.group_size
        longest = settings.data.max_new_tokens + data.report["tokens"] // max(1, data.report["examples"])
        return count_steps(per_epoch, settings.length), f"at most about {prompts * longest}"
    mean = data.report["tokens"] / max(1, data.report["examples"])
    return count_steps(per_epoch, settings.length), round(mean * min(settings.length.batch_size, len(data.train)))


def _teacher(name: str | None, settings: ModelSettings, model: Sizes, device: torch.device) -> float:
    """Bytes of the teacher's own weights: none where it is the policy itself, or lives on a server."""
    if name == "average":
        return trained_numbers(model, settings) * 4.0
    if name is None or name == "live" or name.startswith(("http://", "https://")) or (name == "base" and settings.lora):
        return 0.0
    own = settings if name == "base" else dataclasses.replace(settings, model=name)
    return weight_bytes(sizes_of(own), own, device)


def memory_of(
    method: Method, config: Any, settings: Settings, model: Sizes, device: torch.device, strategy: str, processes: int
) -> dict[str, float]:
    """Bytes by role of one process (see ``estimate``)."""
    taught = bool(method.card.needs_now("teacher", config))
    load = Load(
        online=method.card.online,
        reference=bool(method.card.needs_now("reference", config)),
        teacher_bytes=_teacher(settings.teacher.teacher_model, settings.model, model, device) if taught else 0.0,
    )
    return estimate(model, settings, device, load, strategy, processes)
