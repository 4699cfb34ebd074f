"""Resuming: the settings of a resumed run, and when a process resumes by itself."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from posttrain.errors import RunStopped, SettingsError
from posttrain.runs.directory import RunDirectory
from posttrain.runs.record import read_record, stored_settings
from posttrain.settings import Settings, secret_options

#: Options that a resumed run may change: its length, its output, and its machines.
CHANGEABLE = {
    *("steps", "save_every", "log_every", "eval_every", "save_minutes", "save_total", "reward_timeout"),
    *("progress", "show_completion", "report", "track"),
    *("verify_saved", "data_processes"),
    *("device", "strategy", "tensor_parallel", "context_parallel", "expert_parallel", "cpu_offload", "zero_stage"),
    *("nproc", "nnodes", "node_rank", "rdzv_endpoint", "max_restarts"),
}


def resumed_settings(path: str | Path, changes: dict[str, Any]) -> Settings:
    """Return the settings of the run at ``path`` with ``changes``. Raises SettingsError for fixed options."""
    for key in changes:
        if key not in (*CHANGEABLE, *secret_options.FIELDS):
            raise SettingsError(f"'{key}' cannot change in a resumed run. What can: {', '.join(sorted(CHANGEABLE))}.")
    stored = read_record(Path(path), ("settings",))["settings"]
    for field in set(secret_options.FIELDS) & set(changes):
        changes = changes | {field: secret_options.restored(field, stored.get(field), changes[field])}
    return stored_settings(Path(path)).replace(**changes)


def continued(method: str, settings: Settings) -> tuple[Path | None, Settings]:
    """Find the run directory to continue, None for a new run; return it and the settings to begin with.

    With restarts allowed, the same command continues from the last checkpoint of its own run: after a process failed,
    and when a scheduler requeues the job. A run that failed before its first checkpoint begins again. Raises RunStopped
    where an alert had stopped it.
    """
    restarts = settings.distributed.max_restarts or int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
    again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    path = Path(settings.watch.output)
    if not restarts or not (path / "run.json").is_file() or (settings.watch.overwrite and not again):
        return None, settings
    facts = RunDirectory(path).facts()
    asked = json.loads(json.dumps(secret_options.hidden(settings.flat()), default=str))
    if facts["method"] != method or facts["settings"] != asked:
        return None, settings  # another run, which is not overwritten
    last = RunDirectory(path).last_event()
    if last.get("code") == "stopped":
        raise RunStopped(f"The run stopped before: {last['message']}")
    if any((found / "state.json").is_file() for found in path.glob("checkpoints/step-*")):
        return path, settings
    return None, settings.replace(overwrite=settings.watch.overwrite or bool(again))
