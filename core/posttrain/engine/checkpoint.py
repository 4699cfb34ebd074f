"""Checkpoints: everything that makes a continued run equal the uninterrupted one, written aside and renamed."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy
import torch

from posttrain.engine.reference_cache import kept_in_checkpoint, restore_kept
from posttrain.errors import CheckpointError
from posttrain.models.reference import MovingReference

if TYPE_CHECKING:
    from posttrain.engine.run import Run


def save_checkpoint(run: Run) -> Path:
    """Write ``checkpoints/step-N``; a reader never sees half of one. Older ones beyond ``save_total`` go."""
    final = run.directory.checkpoints / f"step-{run.step}"
    generators = run.strategy.gather([_random_state()])
    reference = kept_in_checkpoint(run)
    aside = run.directory.checkpoints / f".step-{run.step}.tmp"
    if run.strategy.rank == 0:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    run.strategy.barrier()
    run.strategy.save(run, aside)
    run.strategy.barrier()
    if run.strategy.rank == 0:
        training = {
            "schedule": {"last_epoch": run.schedule.last_epoch},
            "state": run.state,
            "teacher": getattr(run.teacher, "saved", lambda: {})(),
            "moving_reference": getattr(run.reference, "saved", lambda: {})(),
            "source": getattr(run.source, "saved", lambda: {})(),
            "reference": reference,
            "random": generators,
        }
        torch.save(training, aside / "training.pt")
        facts = {"step": run.step, "total": run.total, "best": run.best, "method": run.card.name}
        (aside / "state.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
        shutil.rmtree(final, ignore_errors=True)
        aside.rename(final)
        _prune(run)
    run.strategy.barrier()
    run.directory.event("checkpoint", "info", f"checkpoint of step {run.step}", evidence=final.name)
    run.observers.tell("checkpoint_saved", run=run, path=final)
    return final


def restore_checkpoint(run: Run, folder: Path) -> None:
    """Bring weights, optimiser, schedule, method state, data position and random state back."""
    facts = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    run.strategy.load(run, folder)
    training = torch.load(folder / "training.pt", map_location="cpu", weights_only=True)
    run.schedule.last_epoch = training["schedule"]["last_epoch"]
    for place, group in enumerate(run.optimizer.param_groups):
        group["lr"] = run.schedule.base_lrs[place] * run.schedule.lr_lambdas[place](run.schedule.last_epoch)
    run.schedule._last_lr = [group["lr"] for group in run.optimizer.param_groups]
    run.state.clear()
    run.state.update(training["state"])
    if training["teacher"]:
        run.teacher.restore(training["teacher"])
    if isinstance(run.reference, MovingReference):
        run.reference.restore(training["moving_reference"])
    restore_kept(run, training["reference"])
    if training["source"]:
        run.source.restore(training["source"])  # type: ignore[attr-defined]  # only sources that saved something
    if len(training["random"]) == run.strategy.parts:
        _set_random_state(training["random"][run.strategy.part])
    run.step, run.best = facts["step"], facts["best"]


def latest_checkpoint(directory: Path) -> Path:
    """The newest complete checkpoint of a run. Raises CheckpointError where there is none."""
    found = sorted((int(m[1]), path) for path in directory.glob("checkpoints/step-*") if (m := _numbered(path)))
    if not found:
        raise CheckpointError(
            f"'{directory}' has no complete checkpoint. "
            "Start it anew with --overwrite, and --save-every N to have some."
        )
    return found[-1][1]


def _numbered(path: Path) -> re.Match[str] | None:
    match = re.fullmatch(r"step-(\d+)", path.name)
    return match if match and (path / "state.json").is_file() else None


def _prune(run: Run) -> None:
    found = [path for path in run.directory.checkpoints.glob("step-*") if _numbered(path)]
    found.sort(key=lambda path: int(path.name.partition("-")[2]))
    for path in found[: -run.settings.save_total or None]:
        if path.name != f"step-{run.best.get('step')}" or not run.settings.save_best:
            shutil.rmtree(path)
    for path in run.directory.checkpoints.glob(".step-*.tmp"):
        shutil.rmtree(path)


def _random_state() -> dict[str, Any]:
    kind, keys, *rest = cast("tuple[Any, ...]", numpy.random.get_state())
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": _listed(random.getstate())}
    state["numpy"] = [kind, torch.from_numpy(keys.astype("int64")), *rest]
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    numpy.random.set_state((kind, keys.numpy().astype("uint32"), *rest))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _listed(state: tuple[Any, ...]) -> list[Any]:
    version, internal, gauss = state
    return [version, list(internal), gauss]
