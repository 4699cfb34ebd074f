"""The Python interface: everything the command line does, in the same words, with objects in place of names."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from posttrain.assembly.build import build_run
from posttrain.assembly.config import resolve
from posttrain.assembly.data import Prepared, prepare_data
from posttrain.assembly.facts import run_facts
from posttrain.assembly.generate_text import generate_text
from posttrain.assembly.held_out import as_named
from posttrain.assembly.models import check_apart, from_runs
from posttrain.assembly.objects import InMemory
from posttrain.assembly.plan import fit_run, make_plan
from posttrain.catalogue import methods
from posttrain.catalogue.defaults import method_options
from posttrain.catalogue.discovery import modified
from posttrain.catalogue.modifiers import apply_modifiers, described
from posttrain.distributed.restart import resumed_settings
from posttrain.distributed.world import lost_contact, rank_here
from posttrain.errors import CheckpointError, RunFailed, RunStopped, first_line
from posttrain.evaluation import Asked, Evaluation
from posttrain.evaluation import evaluate as evaluate_model
from posttrain.models.adapter_config import as_text
from posttrain.models.save import save_model, write_model_card
from posttrain.runs.checkpoints import find_checkpoints
from posttrain.runs.control import forget_wishes
from posttrain.runs.directory import RunDirectory, new_run_directory
from posttrain.runs.durable import put_folder, remove, writing
from posttrain.runs.progress import ProgressLine
from posttrain.settings import Settings
from posttrain.settings.options import read_options
from posttrain.training.checkpoint import restore_newest
from posttrain.training.finite import refuse_nonfinite
from posttrain.training.loop import train_loop
from posttrain.training.prove import verify_saved
from posttrain.training.run import Outputs, Run


def train(
    method: str | methods.Method,
    settings: Settings | None = None,
    options: dict[str, Any] | None = None,
    *,
    model: Any = None,
    tokenizer: Any = None,
    data: Any = None,
    eval_data: Any = None,
    reward: Any = None,
    teacher: Any = None,
    judge: Any = None,
    environment: Any = None,
    tools: Any = None,
    adapter: Any = None,
    observers: list[Any] | None = None,
    take_over: bool = False,
    **keywords: Any,
) -> Run:
    """Train ``model`` on ``data`` with ``method`` and return the finished run.

    ``model`` is a name or a module (then with ``tokenizer``); ``data`` and ``eval_data`` are names, a list of rows or a
    ``datasets`` object, ``eval_data`` also a dictionary of these by the names of the sets; ``reward`` is a name, a
    callable ``(prompts, completions, **columns) -> list`` or a list of these; ``teacher`` a name or a module with the
    same tokeniser; ``judge`` a name or a callable ``(prompts, firsts, seconds) -> list``; ``environment`` a name, a
    class or a list of functions that the model may call, as ``tools`` is; ``adapter`` a configuration of peft or its
    fields. ``keywords`` are the options of the run and of the method, in snake_case. The result has ``metrics``,
    ``model``, ``tokenizer`` and ``path``. SIGTERM, the first Ctrl-C and a notebook's stop button end the run after its
    current step: it is saved and returned as ``interrupted``, and ``resume`` continues it. ``take_over`` takes a run
    directory from a process of another host. Raises PosttrainError for a user's mistakes.
    """
    loaded = methods.load(method) if isinstance(method, str) else method
    objects = InMemory(tokenizer=tokenizer, observers=observers or [])
    keywords |= _name_or_object(objects, "model", model, str)
    keywords |= _name_or_object(objects, "data", data, str, list_of=str)
    if objects.data is not None and not hasattr(objects.data, "__len__") and hasattr(objects.data, "_ex_iterable"):
        keywords["streaming"] = True  # an IterableDataset of the library datasets
    keywords |= _name_or_object(objects, "eval_data", as_named(eval_data), str, list_of=str)
    if isinstance(teacher, str):
        keywords["teacher_model"] = teacher
    else:
        objects.teacher = teacher
    keywords |= _name_or_object(objects, "judge", judge, str)
    keywords |= _name_or_object(objects, "environment", environment, str)
    keywords |= _name_or_object(objects, "tools", tools, str, list_of=str)
    if adapter is not None:
        keywords["adapter_config"] = as_text(adapter)
    keywords |= _rewards_of(objects, reward)
    if settings is None:
        own = _options_of(loaded)
        settings, options = resolve(loaded.card, own, {}, keywords)
    elif keywords:
        settings = settings.replace(**keywords)
    return _start(
        loaded, method if isinstance(method, str) else loaded.name, settings, options or {}, objects, take_over
    )


def plan(method: str, settings: Settings, options: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return what ``train`` would do and its memory; data are read and checked, weights are not loaded."""
    loaded = methods.load(method)
    settings = from_runs(settings)
    config = loaded.config(options or {}, settings)
    return make_plan(apply_modifiers(loaded, settings), config, settings, InMemory())


def _options_of(method: methods.Method) -> list[Any]:
    if method.card.path is not None:
        return method_options(method.card)
    return read_options(Path(method.module.__file__ or ""))


def _rewards_of(objects: InMemory, reward: Any) -> dict[str, Any]:
    """Return the option ``reward`` where all are names; else store them as objects."""
    if reward is None:
        return {}
    given = [reward] if isinstance(reward, str) or callable(reward) else list(reward)
    if all(isinstance(item, str) for item in given):
        return {"reward": given}
    objects.reward = given
    return {}


def _name_or_object(
    objects: InMemory, name: str, value: Any, kind: type, list_of: type | None = None
) -> dict[str, Any]:
    """Return a keyword where ``value`` is a name (or a list of names); else store it as an object."""
    if value is None:
        return {}
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, kind):
        return {name: [value] if list_of else value}
    if list_of and isinstance(value, list) and value and all(isinstance(item, list_of) for item in value):
        return {name: value}
    setattr(objects, name, value)
    return {}


def _start(
    method: methods.Method,
    name: str,
    settings: Settings,
    options: dict[str, Any],
    objects: InMemory,
    take_over: bool = False,
) -> Run:
    settings = from_runs(settings)
    config = method.config(options, settings)
    method = apply_modifiers(method, settings)
    directory = RunDirectory(settings.watch.output or new_run_directory(method.name), writes=rank_here() == 0)
    directory.claim(take_over)
    try:
        directory.check_free(settings.watch.overwrite)
        check_apart(directory.path, settings)
        data = prepare_data(method, config, settings, objects)
        settings = fit_run(method, config, settings, objects, data)
        run = build_run(method, config, settings, objects, data, directory)
        directory.create(run_facts(run, data, objects, name))
        _announce(run, data)
        return _drive(run, f"{run.progress.total} steps of {method.name}")
    finally:
        directory.release()


def _progress(run: Run) -> ProgressLine:
    kind = run.plan.settings.watch.progress if run.compute.strategy.rank == 0 else "quiet"
    watch, directory = run.plan.settings.watch, run.outputs.directory
    return ProgressLine(
        kind,
        run.progress.total,
        watch.log_every,
        sample=lambda: directory.last_sample if watch.show_completion else None,
    )


def _announce(run: Run, data: Prepared) -> None:
    progress = _progress(run)
    if run.plan.card.tier == "experimental":
        changed = modified(run.plan.card)
        progress.say(changed or f"'{run.plan.card.name}' is experimental: it may change in any release.")
    for note in [*run.plan.method.notes, *data.notes]:
        progress.say(note)


def _drive(run: Run, what: str) -> Run:
    """Run the loop, and record how it ends."""
    run.outputs.directory.event("started", "info", what, evidence={"step": run.progress.step})
    if run.outputs.directory.writes:
        forget_wishes(run.path)
    progress = _progress(run)
    run.outputs.say = progress.say
    run.outputs.observers.add(progress)
    try:
        with run.interrupt.listening(run.compute.strategy.rank == 0):
            train_loop(run, progress)
            _say_interrupted(run) if run.progress.interrupted else _finish(run)
    except BaseException as raised:
        lost = lost_contact(raised)
        error = raised if lost is None else lost
        with contextlib.suppress(RunFailed):  # the disk may be the cause
            _note_failure(run.outputs, run.step, error)
        run.outputs.observers.tell("run_failed", run=run, error=error)
        if lost is not None:
            raise lost from raised
        raise
    finally:
        progress.close()
        run.close()
    return run


def _note_failure(outputs: Outputs, step: int, error: BaseException) -> None:
    first = first_line(error)
    code = "stopped" if isinstance(error, RunStopped) else "failed"
    message, severity = f"{type(error).__name__}: {first}", "error"
    if isinstance(error, KeyboardInterrupt):
        code, severity = "interrupted", "warning"
        message = f"ended at once in step {step + 1}; what was done since the last checkpoint is done again"
    outputs.directory.event(code, severity, message, evidence={"step": step})


def _say_interrupted(run: Run) -> None:
    message = f"interrupted by {run.interrupt.signal or 'another rank'} after step {run.step} of {run.total}"
    suggestion = f"posttrain resume {run.path}"
    run.outputs.directory.event(
        "interrupted", "warning", message, evidence={"step": run.progress.step}, suggestion=suggestion
    )
    run.outputs.observers.tell("run_failed", run=run, error=KeyboardInterrupt(message))
    if run.compute.strategy.rank == 0:
        print(f"I{message[1:]}, and saved. Go on with: {suggestion}", file=sys.stderr)


def _finish(run: Run) -> None:
    """Save the final model aside, rename it into place, and report it: a kill before that leaves a run to resume."""
    refuse_nonfinite(run)
    aside = run.path / ".model.tmp"
    if run.compute.strategy.rank == 0:
        remove(aside)
    run.compute.strategy.barrier()
    with writing(
        f"The model in '{run.outputs.directory.model}'", f"Make room, and save it with: posttrain resume {run.path}"
    ):
        save_model(run.compute.policy, run.compute.tokenizer, aside, run.compute.strategy)
        verify_saved(run.compute, run.outputs, aside)
        if run.compute.strategy.rank == 0:
            last = run.progress.history[-1] if run.progress.history else {}
            write_model_card(
                aside, run.outputs.directory.facts(), last, run.plan.card, run.plan.settings.model.model or None
            )
            put_folder(aside, run.outputs.directory.model)
    if run.compute.strategy.rank == 0 and run.plan.settings.watch.push_to_hub:
        _push(run.outputs, run.plan.settings.watch.push_to_hub)
    run.compute.strategy.barrier()
    run.outputs.directory.event("finished", "info", f"{run.progress.step} steps", evidence={"step": run.progress.step})
    run.outputs.observers.tell("run_finished", run=run)
    run.outputs.say(f"saved: {run.outputs.directory.model}")


def _push(outputs: Outputs, name: str) -> None:
    """Upload the final model folder; the run and its files are kept whatever happens."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        hub = HfApi()
        hub.create_repo(name, exist_ok=True)
        hub.upload_folder(repo_id=name, folder_path=outputs.directory.model)
    except (HfHubHTTPError, OSError, ValueError) as error:
        first = first_line(error)
        message = f"the model was not uploaded to '{name}': {first}"
        outputs.directory.event(
            "push-failed", "warning", message, suggestion=f"hf upload {name} {outputs.directory.model}"
        )
        outputs.say(message)


def resume(
    path: str | Path,
    *,
    model: Any = None,
    tokenizer: Any = None,
    data: Any = None,
    eval_data: Any = None,
    reward: Any = None,
    teacher: Any = None,
    judge: Any = None,
    environment: Any = None,
    tools: Any = None,
    observers: list[Any] | None = None,
    take_over: bool = False,
    **changes: Any,
) -> Run:
    """Continue the run at ``path`` from its newest good checkpoint, as if it had not been interrupted.

    Objects that the run was given must be given again; ``take_over`` as in ``train``. ``changes`` may lengthen it
    (``steps``) or change what does not affect the numbers (``progress``, ``save_every``, ``log_every``,
    ``eval_every``). Raises CheckpointError.
    """
    directory = RunDirectory(path, writes=rank_here() == 0)
    facts = directory.facts()
    settings = resumed_settings(path, changes)
    objects = InMemory(model, tokenizer, data, eval_data, None, teacher, judge, environment, tools, observers or [])
    if reward is not None:
        objects.reward = reward if isinstance(reward, list) else [reward]
    for name in facts["in_memory"]:
        if getattr(objects, name) is None:
            raise CheckpointError(
                f"The run was given its {name} as an object. "
                f"Resume it from Python: posttrain.resume('{path}', {name}=...)"
            )
    directory.claim(take_over)
    try:
        directory.recover()
        find_checkpoints(directory.path)
        return _resume(directory, facts, settings, objects)
    finally:
        directory.release()


def _resume(directory: RunDirectory, facts: dict[str, Any], settings: Settings, objects: InMemory) -> Run:
    method = methods.load(facts["method"])
    config = method.config(facts["options"], settings)
    method = apply_modifiers(method, settings)
    _say_what_changed(directory, method, facts)
    prepared = prepare_data(method, config, settings, objects)
    run = build_run(method, config, settings, objects, prepared, directory)
    for note in restore_newest(run):
        _progress(run).say(note)
    complete = run.compute.strategy.everyone(directory.is_finished())[0]
    if run.progress.step >= run.progress.total and complete:
        run.close()
        raise CheckpointError(
            f"The run at '{run.path}' is complete: step {run.step} of {run.total}. To go on: --steps N"
        )
    directory.rewind(run.progress.step)
    run.compute.strategy.barrier()  # rank 0 has cut the files that all read
    run.progress.history, run.progress.evaluations = directory.read_metrics(), directory.evaluations(run.progress.step)
    where = f"resumed after step {run.progress.step} of {run.progress.total}"
    _progress(run).say(f"{where}, from checkpoint '{directory.checkpoints / f'step-{run.progress.step}'}'")
    return _drive(run, where)


def _say_what_changed(directory: RunDirectory, method: methods.Method, facts: dict[str, Any]) -> None:
    """Record in the run's events a version of the method or of a modifier that differs from the run's first one."""
    was = {one["name"]: one["version"] for one in facts.get("modifiers", [])} | {method.name: facts["card"]["version"]}
    now = {one["name"]: one["version"] for one in described(method)} | {method.name: method.card.version}
    for name, version in now.items():
        if was.get(name) != version:
            directory.event("version", "warning", f"method {name} is {version} now, was {was.get(name)}")


def evaluate(
    model: Any,
    *,
    tokenizer: Any = None,
    data: Any = None,
    reward: Any = None,
    judge: Any = None,
    environment: Any = None,
    tools: Any = None,
    against: str | None = None,
    suite: list[str] | None = None,
    samples: int = 1,
    temperature: float | None = None,
    k: list[int] | None = None,
    right_at: float | None = None,
    say: Callable[[str], None] = print,
    **keywords: Any,
) -> Evaluation:
    """Measure how good ``model`` is on ``data``: a name, the directory of a run, or a module with its ``tokenizer``.

    With rewards, an environment or a judge it answers each prompt ``samples`` times and the answers are scored; rows of
    pairs give its preference accuracy, rows of texts their perplexity; ``suite`` names tasks of lm-evaluation-harness.
    ``against`` is measured on the same rows and compared row by row. ``keywords`` are options of a run. Raises
    PosttrainError.
    """
    objects = InMemory(tokenizer=tokenizer)
    given = dict(keywords) | _name_or_object(objects, "data", as_named(data), str, list_of=str)
    for name, value, many in (("judge", judge, None), ("environment", environment, None), ("tools", tools, str)):
        given |= _name_or_object(objects, name, value, str, list_of=many)
    given |= _rewards_of(objects, reward)
    if not isinstance(model, str | Path):
        objects.model, model = model, ""
    if suite:
        from posttrain.evaluation.suites import run_suite

        return run_suite(str(model), suite, given, objects, against, say)
    drawn = (1.0 if samples > 1 else 0.0) if temperature is None else temperature
    return evaluate_model(str(model), given, objects, Asked(samples, drawn, tuple(k or ()), right_at), against, say)


__all__ = ["Run", "evaluate", "generate_text", "plan", "resume", "train"]
