"""Checkpoints: all state that makes a resumed run equal the uninterrupted one, written aside and renamed."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy
import torch

from posttrain.errors import CheckpointError
from posttrain.models.reference import MovingReference
from posttrain.runs.checkpoints import find_checkpoints, none_is_good
from posttrain.runs.directory import RunDirectory, is_checkpoint, step_of
from posttrain.runs.durable import put_folder, writing
from posttrain.runs.json_file import read_object
from posttrain.runs.manifest import find_damage, write_manifest
from posttrain.training.averaging import scheduled
from posttrain.training.finite import nonfinite_weights, refuse_nonfinite
from posttrain.training.reference_use import kept_in_checkpoint, restore_kept

if TYPE_CHECKING:
    from posttrain.training.run import Compute, Plan, Progress, Run


def save_checkpoint(run: Run) -> Path:
    """Write ``checkpoints/step-N`` in one rename, and delete older ones beyond ``save_total``.

    Raises RunStopped for weights that are not finite, RunFailed on a full disk.
    """
    refuse_nonfinite(run)
    final = run.outputs.directory.checkpoints / f"step-{run.progress.step}"
    aside = run.outputs.directory.checkpoints / f".step-{run.progress.step}.tmp"
    good = run.outputs.directory.newest_checkpoint()
    advice = f"The last good checkpoint is '{good}'. " if good else ""
    advice += f"Make room, and go on with: posttrain resume {run.path}" if good else "Make room, and start again."
    try:
        with writing(f"The checkpoint of step {run.progress.step} in '{final.parent}'", advice):
            _write(run, aside)
            if run.compute.strategy.rank == 0:
                put_folder(aside, final)
                _prune(run.plan, run.progress, run.outputs.directory)
    except BaseException:
        if run.compute.strategy.rank == 0:
            shutil.rmtree(aside, ignore_errors=True)  # frees a full disk
        raise
    run.compute.strategy.barrier()
    run.outputs.directory.event("checkpoint", "info", f"checkpoint of step {run.progress.step}", evidence=final.name)
    run.outputs.observers.tell("checkpoint_saved", run=run, path=final)
    return final


def _write(run: Run, aside: Path) -> None:
    """Write all files of a checkpoint, the manifest last."""
    generators = run.compute.strategy.gather([_random_state()])
    reference = kept_in_checkpoint(run.compute, run.outputs.directory)
    if run.compute.strategy.rank == 0:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    run.compute.strategy.barrier()
    run.compute.strategy.save(run.compute, aside)
    run.compute.strategy.barrier()
    if run.compute.strategy.rank == 0:
        training = {
            "schedule": {"last_epoch": run.compute.schedule.last_epoch},
            "state": run.compute.state,
            "teacher": getattr(run.compute.teacher, "saved", lambda: {})(),
            "moving_reference": getattr(run.compute.reference, "saved", lambda: {})(),
            "average": {} if run.compute.average is None else run.compute.average.saved(),
            "source": getattr(run.source, "saved", lambda: {})(),
            "reference": reference,
            "random": generators,
        }
        torch.save(training, aside / "training.pt")
        facts = {
            "step": run.progress.step,
            "total": run.progress.total,
            "best": run.progress.best,
            "method": run.plan.card.name,
        }
        (aside / "state.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
        write_manifest(aside)


def restore_newest(run: Run) -> list[str]:
    """Restore the newest good checkpoint; return a line per newer one passed over, and per difference.

    A truncated, damaged or non-finite one is renamed to ``step-N.damaged``. Raises CheckpointError if none is good.
    """
    passed: dict[Path, str] = {}
    strategy = run.compute.strategy
    reads = strategy.rank == 0  # one rank decides: a folder may look different from another machine
    for folder in strategy.everyone(find_checkpoints(run.path) if reads else [])[0]:
        problem = strategy.everyone(find_damage(folder) if reads else None)[0]
        if problem is None:
            notes = restore_checkpoint(run, folder)
            bad = nonfinite_weights(run.compute)
            if not bad:
                said = [f"Checkpoint '{path}' is passed over: {why}." for path, why in passed.items()]
                for line in said:
                    run.outputs.directory.event(
                        "checkpoint-damaged", "warning", line, evidence={"resumed": folder.name}
                    )
                _set_damaged_aside(run.compute, list(passed))
                return said + notes
            problem = f"its weights are not finite, first {bad[0]}"
        passed[folder] = problem
    raise CheckpointError(none_is_good(run.path, passed))


def _set_damaged_aside(compute: Compute, folders: list[Path]) -> None:
    """Rename damaged checkpoints, which pruning would otherwise count instead of good ones."""
    for folder in folders if compute.strategy.rank == 0 else ():
        with contextlib.suppress(OSError):
            put_folder(folder, folder.with_name(f"{folder.name}.damaged"))


def restore_checkpoint(run: Run, folder: Path) -> list[str]:
    """Restore weights, optimiser, schedule, method state, data position and random state; return what cannot be."""
    facts = read_object(folder / "state.json", CheckpointError, "Delete this checkpoint; an earlier one is taken then.")
    run.compute.strategy.load(run.compute, folder)
    training = torch.load(folder / "training.pt", map_location="cpu", weights_only=True)
    run.compute.schedule.last_epoch = training["schedule"]["last_epoch"]
    for place, group in enumerate(run.compute.optimizer.param_groups):
        group["lr"] = run.compute.schedule.base_lrs[place] * run.compute.schedule.lr_lambdas[place](
            run.compute.schedule.last_epoch
        )
    run.compute.schedule._last_lr = [group["lr"] for group in run.compute.optimizer.param_groups]
    run.compute.state.clear()
    run.compute.state.update(training["state"])
    if training["teacher"]:
        run.compute.teacher.restore(training["teacher"])
    if isinstance(run.compute.reference, MovingReference):
        run.compute.reference.restore(training["moving_reference"])
    if run.compute.average is not None:
        run.compute.average.restore(training.get("average", {}))
    restore_kept(run.compute, training["reference"])
    if training["source"]:
        run.source.restore(training["source"])  # type: ignore[attr-defined]  # only sources that save something
    run.progress.step, run.progress.best = facts["step"], facts["best"]
    saved, parts = len(training["random"]), run.compute.strategy.data_size
    if saved == parts:
        _set_random_state(training["random"][run.compute.strategy.data_rank])
        return []
    return [
        f"The checkpoint holds the random state of {saved} processes and this run has {parts}: dropout draws other "
        "numbers than it would have in the uninterrupted run."
    ]


def _prune(plan: Plan, progress: Progress, directory: RunDirectory) -> None:
    """Delete checkpoints beyond ``save_total``, except the best one under --save-best and those to average."""
    found = [path for path in directory.checkpoints.glob("step-*") if is_checkpoint(path)]
    found.sort(key=step_of)
    wanted, watch = plan.settings.optim.average_last, plan.settings.watch
    averaged = scheduled(directory, watch.save_every, progress.step)[-wanted:] if wanted else []
    for path in found[: -watch.save_total or None]:
        if path in averaged:
            continue
        if path.name != f"step-{progress.best.get('step')}" or not watch.save_best:
            path.rename(path.with_name(f".{path.name}.tmp"))  # no incomplete checkpoint has a complete one's name
    for path in directory.checkpoints.glob(".step-*"):  # left by kills
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
