"""Collect the content of run.json."""

from __future__ import annotations

import dataclasses
import datetime
from typing import TYPE_CHECKING, Any

from posttrain.catalogue.modifiers import described
from posttrain.runs import facts
from posttrain.settings.secret_options import hidden
from posttrain.training.run import Run

if TYPE_CHECKING:
    from posttrain.assembly.data import Prepared
    from posttrain.assembly.objects import InMemory


def run_facts(run: Run, data: Prepared, objects: InMemory, method_name: str) -> dict[str, Any]:
    """The content of run.json."""
    card = run.plan.card
    return {
        "format": 1,
        "method": method_name,
        "card": {"name": card.name, "version": card.version, "tier": card.tier, "schema": card.schemas[0]},
        "modifiers": described(run.plan.method),
        "settings": hidden(run.plan.settings.flat()),
        "options": dataclasses.asdict(run.plan.config),
        "total_steps": run.progress.total,
        "parameters": run.compute.sizes,
        "data": data.report,
        "notes": data.notes,
        "in_memory": [
            n for n in ("model", "data", "eval_data", "reward", "teacher", "judge") if _is_object(getattr(objects, n))
        ],
        "strategy": {"name": run.compute.strategy.name, "world": run.compute.strategy.world},
        "versions": facts.versions(),
        "hardware": facts.hardware(),
        "code": facts.code(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _is_object(value: Any) -> bool:
    return any(not isinstance(item, str) for item in value) if isinstance(value, list) else value is not None
