"""Requests to a run in another process: a file in its folder, which the run checks after each step."""

from __future__ import annotations

from pathlib import Path

from posttrain.errors import CheckpointError, SettingsError
from posttrain.runs.owner import find_owner

STOP, CHECKPOINT = "stop", "checkpoint"
#: File of each request.
_FILES = {wish: f".ask-{wish}" for wish in (STOP, CHECKPOINT)}
CONTROL = tuple(_FILES.values())


def ask(path: str | Path, wish: str) -> str:
    """Ask the run in folder ``path`` to stop or to save a checkpoint; return a line that announces what will happen.

    Raises CheckpointError where ``path`` is no run, SettingsError where no process runs it.
    """
    folder = Path(path)
    if not (folder / "run.json").is_file():
        raise CheckpointError(f"'{folder}' is not a run directory: it has no run.json.")
    owner = find_owner(folder)
    if owner is None or owner.alive is False:
        raise SettingsError(f"The run at '{folder}' is not running. What became of it: posttrain status {folder}")
    try:
        (folder / _FILES[wish]).touch()
    except OSError as error:
        raise SettingsError(
            f"The run at '{folder}' cannot be asked: {error.strerror}. It needs write access to the folder; on its own "
            f"machine: kill {owner.process}"
        ) from None
    what = "stops after its step, saved" if wish == STOP else "saves a checkpoint after its step"
    return f"The run at '{folder}' (process {owner.process} on {owner.host}) {what}."


def take_wishes(folder: Path) -> set[str]:
    """Return and remove the requests to the run in ``folder`` since the last call."""
    found = {wish for wish, name in _FILES.items() if (folder / name).exists()}
    forget_wishes(folder, found)
    return found


def forget_wishes(folder: Path, wishes: set[str] | None = None) -> None:
    """Remove requests, all without ``wishes``: those to an earlier start of a run do not concern the next one."""
    for wish in _FILES if wishes is None else wishes:
        (folder / _FILES[wish]).unlink(missing_ok=True)
