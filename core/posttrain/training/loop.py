"""Training loop of all methods: examples, a step, a line of metrics; at intervals an evaluation or a checkpoint."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from posttrain.contract.views import Step
from posttrain.errors import SettingsError
from posttrain.models.ema import EmaModel
from posttrain.runs.facts import peak_memory_mb
from posttrain.runs.progress import ProgressLine
from posttrain.training.alerts import look, make_watcher, stop
from posttrain.training.annotate import annotate
from posttrain.training.asked import SaveClock, ask_around
from posttrain.training.averaging import put_average
from posttrain.training.checkpoint import restore_checkpoint, save_checkpoint
from posttrain.training.evaluate import best_metric, is_better
from posttrain.training.movement import Movement
from posttrain.training.nan_origin import skip_or_refuse
from posttrain.training.reference_use import fill_reference
from posttrain.training.step import Outcome, optimiser_step

if TYPE_CHECKING:
    from posttrain.training.run import Plan, Progress, Run


def train_loop(run: Run, progress: ProgressLine) -> None:
    """Run the steps from ``run.step`` to ``run.total``; leave the best or the last weights in the policy.

    A run that is asked to stop ends after a step, saved and ``interrupted``.
    """
    run.compute.policy.train()
    run.outputs.observers.tell("run_started", run=run)
    fill_reference(run)
    saved = run.progress.step or None
    if run.evaluation is not None and run.progress.step == 0 and not run.progress.best:
        evaluate(run, progress)
        if _best_now(run.plan, run.progress):
            save_checkpoint(run)
            saved = run.progress.step
    clock = SaveClock.of(run.plan.settings.watch.save_minutes)
    watcher = make_watcher(run.plan, run.outputs.directory)
    movement = Movement(run.compute)
    while run.progress.step < run.progress.total and not _patience_is_over(run.plan, run.progress):
        asked = ask_around(run.outputs.directory, run.interrupt, run.compute.strategy, clock)
        if asked.save and saved != run.progress.step:
            _save(run, clock)
            saved = run.progress.step
        if asked.stop:
            run.progress.interrupted = True
            break
        line = _one_step(run)
        details = movement.after_step(run.compute, line)
        if run.evaluation is not None and _due(run.progress, run.plan.settings.watch.eval_every, at_end=True):
            line |= evaluate(run, progress)
        run.progress.history.append(line)
        run.outputs.directory.metrics(line)
        progress.step(line)
        run.outputs.observers.tell("step_done", run=run, step=run.progress.step, metrics=line)
        ending = look(run, watcher, details)
        if ending or _due(run.progress, run.plan.settings.watch.save_every) or _best_now(run.plan, run.progress):
            _save(run, clock)
            saved = run.progress.step
        if ending:
            stop(run.path, ending)
    if saved != run.progress.step:
        save_checkpoint(run)
    if (
        run.plan.settings.watch.save_best
        and run.progress.best
        and run.progress.best["step"] != run.progress.step
        and not run.progress.interrupted
    ):
        restore_best(run, progress)
    if not run.progress.interrupted:
        put_average(run)


def _save(run: Run, clock: SaveClock) -> None:
    begun = time.monotonic()
    save_checkpoint(run)
    clock.saved(begun)


def _one_step(run: Run) -> dict[str, Any]:
    begun = time.monotonic()
    everyone = run.source.examples(run.progress.step)
    reading = time.monotonic() - begun
    annotate(run.compute, everyone)
    examples = run.compute.strategy.scatter(everyone)
    rate = float(run.compute.schedule.get_last_lr()[0])
    outcome = optimiser_step(run.compute, examples, Step(run.progress.step, run.progress.total))
    run.progress.step += 1
    for model in (run.compute.teacher, run.compute.reference):
        if isinstance(model, EmaModel):
            model.step_done(run.progress.step)
    if run.compute.average is not None:
        run.compute.average.add()
    seconds = time.monotonic() - begun
    line = _line(run.progress.step, outcome, rate, seconds) | getattr(run.source, "metrics", {})
    if not run.plan.card.online:
        line["data_seconds"] = reading
    if not all(math.isfinite(line[name]) for name in ("loss", "grad_norm")):
        skip_or_refuse(run, examples, line)
        return line
    run.plan.method.after_step(
        step=Step(run.progress.step - 1, run.progress.total),
        metrics=line,
        config=run.plan.config,
        state=run.compute.state,
    )
    return line


def _line(step: int, outcome: Outcome, rate: float, seconds: float) -> dict[str, Any]:
    """Build one line of metrics.jsonl; the loss is that of the whole optimiser step."""
    line: dict[str, Any] = {
        "step": step,
        "loss": outcome.loss,
        "grad_norm": outcome.grad_norm,
        "learning_rate": rate,
        "tokens": outcome.tokens,
        "tokens_per_second": outcome.tokens / max(seconds, 1e-9),
        "seconds": seconds,
        "peak_memory_mb": peak_memory_mb(),
    }
    if len(outcome.terms) > 1:
        line |= outcome.terms
    return line | outcome.metrics


def evaluate(run: Run, progress: ProgressLine) -> dict[str, float]:
    """Evaluate, record, and compare with the best so far. Names get the prefix ``eval_``."""
    found = {f"eval_{name}": value for name, value in run.evaluation(run.compute, run.progress).items()}
    name, _ = best_metric(run.plan)
    if (run.plan.settings.watch.save_best or run.plan.settings.watch.early_stopping) and name not in found:
        raise SettingsError(f"best-metric '{name}' is not among the evaluation's metrics: {', '.join(found)}.")
    is_better(run.plan, run.progress, found)
    run.progress.evaluations.append({"step": run.progress.step, **found})
    run.outputs.directory.event(
        "evaluation",
        "info",
        f"evaluation after step {run.progress.step}",
        evidence={"step": run.progress.step, **found},
    )
    shown = "  ".join(f"{key} {value:.4f}" for key, value in list(found.items())[:6])
    progress.say(f"evaluation after step {run.progress.step}: {shown}")
    return found


def restore_best(run: Run, progress: ProgressLine) -> None:
    """Put the best checkpoint's weights into the policy."""
    step, last = run.progress.best["step"], run.progress.step
    best = dict(run.progress.best)
    restore_checkpoint(run, run.outputs.directory.checkpoints / f"step-{step}")
    run.progress.step, run.progress.best = last, best
    progress.say(f"the best weights are those of step {step}: {best_metric(run.plan)[0]} {best['value']:.4f}")


def _due(progress: Progress, every: int | None, at_end: bool = False) -> bool:
    return bool(every and progress.step % every == 0) or (at_end and progress.step == progress.total)


def _best_now(plan: Plan, progress: Progress) -> bool:
    return plan.settings.watch.save_best and progress.best.get("step") == progress.step


def _patience_is_over(plan: Plan, progress: Progress) -> bool:
    patience = plan.settings.watch.early_stopping
    return patience is not None and progress.best.get("since", 0) >= patience
