"""Collection of the content of run.json."""

from __future__ import annotations

import dataclasses
import datetime
from typing import TYPE_CHECKING, Any

from posttrain.catalogue.modifiers import described
from posttrain.network.precision import casts_to_bfloat16
from posttrain.runs import facts
from posttrain.settings.secret_options import hidden
from posttrain.training.micro_batches import token_budget
from posttrain.training.run import Compute, Run

if TYPE_CHECKING:
    from posttrain.assembly.data import Prepared
    from posttrain.assembly.objects import InMemory


def run_facts(run: Run, data: Prepared, objects: InMemory, method_name: str) -> dict[str, Any]:
    """Return the content of run.json."""
    card = run.plan.card
    return {
        "format": 1,
        "method": method_name,
        "card": {
            "name": card.name,
            "version": card.version,
            "tier": card.tier,
            "schema": card.schemas[0],
            "needs": list(card.needs),
            "ranges": card.ranges,
        },
        "modifiers": described(run.plan.method),
        "settings": hidden(run.plan.settings.flat()),
        "options": dataclasses.asdict(run.plan.config),
        "total_steps": run.progress.total,
        "parameters": run.compute.sizes,
        "data": data.report,
        "notes": data.notes,
        "in_memory": [
            name
            for name in ("model", "data", "eval_data", "reward", "teacher", "judge", "environment", "tools")
            if _is_object(getattr(objects, name))
        ],
        "strategy": {"name": run.compute.strategy.name, "world": run.compute.strategy.world},
        "versions": facts.versions(),
        "hardware": facts.hardware(),
        "memory": _memory(run.compute),
        "code": facts.code(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _memory(compute: Compute) -> dict[str, Any]:
    """Return the memory facts of rules: the total, what stays allocated between steps, and the size of a pass."""
    settings, device = compute.settings, compute.policy.device
    narrow = casts_to_bfloat16(settings.model, compute.policy)
    # gradients and both moments of trained parameters, in float32 at most
    fixed = facts.memory_now_mb(device) + 12 * compute.sizes["trained"] / 2**20
    return {
        "device": device.type,
        "limit_mb": facts.memory_limit_mb(device),
        "fixed_mb": round(fixed, 1),
        "micro_batch_tokens": token_budget(settings.memory.micro_batch_tokens, device, compute.card.online, narrow),
    }


def _is_object(value: Any) -> bool:
    return any(not isinstance(item, str) for item in value) if isinstance(value, list) else value is not None
