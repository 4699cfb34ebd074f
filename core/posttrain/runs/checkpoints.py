"""Search for the checkpoints of a run directory, without loading a run."""

from __future__ import annotations

import sys
from pathlib import Path

from posttrain.errors import CheckpointError
from posttrain.runs.directory import is_checkpoint, step_of
from posttrain.runs.manifest import find_damage


def find_checkpoints(directory: Path) -> list[Path]:
    """List the complete checkpoints of a run, newest first. Raises CheckpointError where there is none."""
    found = [path for path in directory.glob("checkpoints/step-*") if is_checkpoint(path)]
    if not found:
        raise CheckpointError(
            f"'{directory}' has no complete checkpoint. "
            "Start it anew with --overwrite, and --save-every N to have some."
        )
    return sorted(found, key=step_of, reverse=True)


def latest_checkpoint(directory: Path) -> Path:
    """Return the newest good checkpoint of a run; print newer damaged ones to standard error.

    Raises CheckpointError where none is good.
    """
    passed: dict[Path, str] = {}
    for folder in find_checkpoints(directory):
        problem = find_damage(folder)
        if problem is None:
            return folder
        print(f"Checkpoint '{folder}' is passed over: {problem}.", file=sys.stderr)
        passed[folder] = problem
    raise CheckpointError(none_is_good(directory, passed))


def model_of(run: Path) -> Path:
    """Return the model inside a run directory: the final one, or that of the newest good checkpoint.

    Raises CheckpointError where there is neither.
    """
    final = run / "model"
    return final if final.is_dir() else latest_checkpoint(run) / "model"


def model_in(name: str) -> str:
    """Return the folder of the model in a run directory called ``name``; any other name of a model as it is.

    Raises CheckpointError for a run without a model.
    """
    folder = Path(name).expanduser()
    return str(model_of(folder)) if (folder / "run.json").is_file() else name


def none_is_good(directory: Path, passed: dict[Path, str]) -> str:
    """Return a message with the damaged checkpoints of a run and their faults."""
    reasons = "; ".join(f"{path.name}: {why}" for path, why in passed.items())
    return f"'{directory}' has no good checkpoint: {reasons}. Start it anew with --overwrite."
