"""Building a run from settings: every mistake a user can make is found before weights load."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import nn

from posttrain.assembly.check import check_context, check_sampling, check_strategy
from posttrain.assembly.data import cache_folder
from posttrain.assembly.environment import make_player
from posttrain.assembly.models import (
    add_extra_modules,
    build_reference,
    head_kind,
    make_average,
    place_models,
    untrained_policy,
)
from posttrain.catalogue.methods import Method
from posttrain.distillation.teacher import load_teacher
from posttrain.distributed.select import choose_strategy
from posttrain.generation.backends import make_generator
from posttrain.models.load import load_policy
from posttrain.models.probe import use_replay
from posttrain.rollouts.collect import Collector
from posttrain.rollouts.evaluation import GreedyAnswers
from posttrain.rollouts.source import Online
from posttrain.runs.directory import RunDirectory
from posttrain.runs.observers import Observers
from posttrain.runs.report.keeper import ReportKeeper
from posttrain.runs.trackers import Tracker
from posttrain.settings import Settings
from posttrain.settings.sections import WatchSettings
from posttrain.training.correction import choose_correction
from posttrain.training.evaluate import HeldOutLoss, evaluation_of
from posttrain.training.optim import rounding_notes
from posttrain.training.reference_use import begin_reference
from posttrain.training.router_loss import find_router_loss
from posttrain.training.run import Compute, Outputs, Plan, Progress, Run
from posttrain.training.schedule import build_schedule
from posttrain.training.source import Offline, Stream, order_of

if TYPE_CHECKING:
    from posttrain.assembly.data import Prepared
    from posttrain.assembly.objects import InMemory


def build_run(
    method: Method, config: Any, settings: Settings, objects: InMemory, data: Prepared, directory: RunDirectory
) -> Run:
    """Build the run from strategy, model, reference, optimiser and source."""
    card = method.card
    strategy, why = choose_strategy(settings.distributed, settings.model, settings.optim)
    check_strategy(strategy.name, settings.distributed, settings.model.compile)
    check_context(method, settings)
    random.seed(settings.data.seed)  # rewards derive their seeds from this
    loaded = load_policy(
        objects.model or settings.model.model,
        data.tokenizer,
        settings.model,
        head_kind(card, config),
        seed=settings.data.seed,
        split_layers=settings.distributed.tensor_parallel > 1,
        noise=card.imitates(config) if settings.model.dropout is None else settings.model.dropout,
    )
    add_extra_modules(method, config, loaded.policy)
    router_loss = find_router_loss(loaded.policy, settings.model)
    # before the weights are sharded, since it may begin as a copy of them
    reference = (
        build_reference(loaded.policy, settings.reference, settings.model, objects, strategy)
        if card.needs_now("reference", config)
        else None
    )
    teacher = None
    if card.needs_now("teacher", config):
        start = functools.partial(untrained_policy, loaded.policy, reference, settings.reference, strategy)
        teacher = load_teacher(loaded.policy, data.tokenizer, settings.teacher, settings.model, objects.teacher, start)
    if settings.rollouts.router_replay:
        use_replay(loaded.policy)
    strategy.prepare(loaded.policy)
    place_models(teacher, reference, strategy)
    parameters = [p for p in loaded.policy.parameters() if p.requires_grad]
    compute = Compute(
        plan=Plan(settings, method, config),
        policy=loaded.policy,
        tokenizer=data.tokenizer,
        stop_ids=loaded.stop_ids | data.stop_ids,
        reference=reference,
        teacher=teacher,
        strategy=strategy,
        parameters=parameters,
        sizes={"trained": _count(parameters), "all": _count(loaded.policy.parameters())},
        model_in_memory=objects.model is not None,
        router_loss=router_loss,
        average=make_average(loaded.policy, settings.optim, strategy),
    )
    if settings.optim.neftune_alpha:
        loaded.policy.noise_alpha, loaded.policy.shared = settings.optim.neftune_alpha, False
    watching = _observers(settings.watch, objects.observers) if strategy.rank == 0 else []
    run = Run(compute.plan, compute, Progress(), Outputs(directory, Observers(watching)))
    _sources(run, data)
    run.progress.total = run.source.steps()
    compute.optimizer = strategy.optimizer(loaded.policy, settings.optim)
    compute.schedule = build_schedule(compute.optimizer, settings.optim, run.total)
    found = begin_reference(run, objects.model is not None, cache_folder(settings.model, "reference"))
    data.notes += [*loaded.notes, f"strategy {why}", *found, *rounding_notes(compute.optimizer, settings.optim)]
    return run


def _observers(watch: WatchSettings, given: Iterable[Any]) -> list[Any]:
    """Return all observers: those that posttrain ships (trackers, the report), installed ones, those of the caller."""
    own: list[Any] = [Tracker(name) for name in watch.track or []]
    if watch.report is not False:
        own.append(ReportKeeper(always=watch.report is True))
    return [*own, *(watch.observers or []), *given]


def _sources(run: Run, data: Prepared) -> None:
    settings = run.plan.settings
    if run.plan.card.online:
        generator = make_generator(run.compute, run.outputs.directory)
        check_sampling(settings.distributed, generator)
        run.compute.correction = choose_correction(
            settings.correction, settings.rollouts.max_staleness > 0 or not generator.abilities.exact
        )
        player = None if data.task is None else make_player(run.compute, data.task, lambda line: run.outputs.say(line))
        run.source = Online(run, Collector(run, data.train, generator, data.rewards, data.judge, player))
        if data.rewards or data.task is not None or run.compute.teacher is not None:
            limit = settings.watch.eval_batches and settings.watch.eval_batches * settings.length.batch_size
            sets = {
                name: GreedyAnswers(Collector(run, rows, generator, data.rewards, player=player), limit)
                for name, rows in data.held_out.items()
            }
            run.evaluation = evaluation_of(sets)
        return
    if settings.data.streaming:
        run.source = Stream(data.train, settings.length)
    else:
        run.source = Offline(data.train, order_of(len(data.train), settings.data, settings.length), settings.length)
    watch, size = settings.watch, settings.length.batch_size
    run.evaluation = evaluation_of(
        {name: HeldOutLoss(rows, watch.eval_batches, size) for name, rows in data.held_out.items()}
    )


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)
