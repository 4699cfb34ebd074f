"""From settings to a run that is ready to start: every mistake a user can make is found before weights load."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import itertools
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from posttrain.cards import Card
from posttrain.data import prepare, read_rows, stream
from posttrain.data.reshape import reshape
from posttrain.demo.example import REWARD, is_data
from posttrain.engine.correction import choose_correction
from posttrain.engine.evaluate import HeldOutLoss
from posttrain.engine.forward import TokenModel
from posttrain.engine.optim import build_schedule
from posttrain.engine.reference_cache import begin_reference
from posttrain.engine.router_loss import find_router_loss
from posttrain.engine.run import Run
from posttrain.engine.source import Offline, Stream, order_of
from posttrain.engine.values import check_values
from posttrain.errors import DataError, SettingsError
from posttrain.generation.choose import check_generation, make_generator
from posttrain.methods import Method
from posttrain.models.average import Average
from posttrain.models.load import choose_device, load_module, load_policy, load_tokenizer, stop_ids, stop_ids_of
from posttrain.models.reference import MovingReference, Reference
from posttrain.models.teacher import ModelTeacher, check_teacher, load_teacher
from posttrain.modifiers import described
from posttrain.rewards import Reward, check_columns, load_rewards
from posttrain.rollouts.collect import Collector
from posttrain.rollouts.evaluation import GreedyAnswers
from posttrain.rollouts.source import Online
from posttrain.secret_options import hidden
from posttrain.settings import Settings
from posttrain.strategies.choose import choose
from posttrain.strategies.protocol import Strategy
from posttrain.watch import facts
from posttrain.watch.observers import Observers, load_observer
from posttrain.watch.run_directory import RunDirectory


@dataclass
class Objects:
    """What a Python program hands over instead of naming it."""

    model: nn.Module | None = None
    tokenizer: Any = None
    data: Any = None
    eval_data: Any = None
    reward: list[Callable[..., Any] | str] | None = None
    teacher: nn.Module | None = None
    judge: Callable[..., Any] | None = None
    observers: list[Any] = field(default_factory=list)


@dataclass
class Prepared:
    """The data of a run, tokenised, and what is needed to learn from it; no weights yet."""

    tokenizer: Any
    stop_ids: set[int]
    train: Any
    held_out: Any
    rewards: list[Reward]
    judge: Any
    report: dict[str, Any]
    notes: list[str]


def cache_folder(settings: Settings, what: str = "data") -> Path | None:
    """Where tokenised data, or another kind of thing, is kept; None for nowhere."""
    if settings.cache == "off":
        return None
    return Path(settings.cache or "~/.cache/posttrain").expanduser() / what


def prepare_data(method: Method, config: Any, settings: Settings, objects: Objects) -> Prepared:
    """Rows read, checked and tokenised, rewards found; the tokenizer is the only part of the model that is read."""
    card = method.card
    _check_settings(card, settings, objects)
    accepted = card.schemas
    rows = read_rows(objects.data if objects.data is not None else settings.data, accepted, settings)
    held_out: Any = None
    if objects.eval_data is not None or settings.eval_data:
        source = objects.eval_data if objects.eval_data is not None else settings.eval_data
        whole = settings.replace(limit=None, streaming=False)
        held_out = read_rows(source, accepted, whole, what="eval-data")
    elif settings.eval_fraction:
        rows, held_out = _split(rows, settings)
    tokenizer = objects.tokenizer
    if tokenizer is None:
        tokenizer = load_tokenizer(settings.model, settings, settings.chat_template)
    stops = (
        stop_ids_of(settings.model, tokenizer, settings)
        if objects.model is None
        else stop_ids(objects.model, tokenizer)
    )
    if not card.online:
        rows = reshape(rows, method, config)
        held_out = None if held_out is None else reshape(held_out, method, config)
    for some in (rows, held_out):
        if some is not None:
            _check_columns(card, config, some)
    if card.needs_now("teacher", config):
        aligned = method.takes("posttrain_token_statistics", "alignment")
        check_teacher(card.name, settings, objects.teacher, tokenizer, aligned)
    rewards = _rewards(card, settings, objects, tokenizer, rows) if card.online else []
    notes = list(rows.notes)
    if settings.streaming:
        train: Any = lambda skip: stream(rows, tokenizer, settings, stops, settings.seed, skip)  # noqa: E731
        report: dict[str, Any] = {"streaming": True}
    else:
        train = prepare(rows, tokenizer, settings, stops, cache_folder(settings))
        report = dict(train.report)
    if held_out is not None:
        held_out = prepare(held_out, tokenizer, settings, stops, cache_folder(settings))
        report["eval"] = dict(held_out.report)
    judge = _judge(settings, objects, tokenizer) if card.online else None
    return Prepared(tokenizer, stops, train, held_out, rewards, judge, report, notes)


def build_run(
    method: Method, config: Any, settings: Settings, objects: Objects, data: Prepared, directory: RunDirectory
) -> Run:
    """Strategy, model, reference, optimiser and source, put together."""
    card = method.card
    strategy, why = choose(settings)
    _check_strategy(strategy.name, settings)
    random.seed(settings.seed)  # rewards draw from what this gives
    loaded = load_policy(
        objects.model or settings.model,
        data.tokenizer,
        settings,
        _head(card, config),
        seed=settings.seed,
        split_layers=settings.tensor_parallel > 1,
        noise=card.imitates(config) if settings.dropout is None else settings.dropout,
    )
    _add_modules(method, config, loaded.policy)
    router_loss = find_router_loss(loaded.policy, settings)
    # before the weights are spread, since it may begin as a copy of them
    reference = _reference(loaded.policy, settings, objects, strategy) if card.needs_now("reference", config) else None
    teacher = None
    if card.needs_now("teacher", config):
        start = functools.partial(_start, loaded.policy, reference, settings, strategy)
        teacher = load_teacher(loaded.policy, data.tokenizer, settings, objects.teacher, start)
    strategy.prepare(loaded.policy)
    _place(teacher, reference, strategy)
    run = Run(
        settings=settings,
        method=method,
        config=config,
        policy=loaded.policy,
        tokenizer=data.tokenizer,
        stop_ids=loaded.stop_ids | data.stop_ids,
        reference=reference,
        teacher=teacher,
        strategy=strategy,
        router_loss=router_loss,
        directory=directory,
        model_in_memory=objects.model is not None,
        observers=Observers([*(settings.observers or []), *objects.observers] if strategy.rank == 0 else []),
    )
    run.parameters = [p for p in loaded.policy.parameters() if p.requires_grad]
    run.sizes = {"trained": _count(run.parameters), "all": _count(loaded.policy.parameters())}
    _sources(run, data)
    run.total = run.source.steps()
    run.optimizer = strategy.optimizer(loaded.policy, settings)
    run.schedule = build_schedule(run.optimizer, settings, run.total)
    found = begin_reference(run, objects.model is not None, cache_folder(settings, "reference"))
    data.notes += [*loaded.notes, f"strategy {why}", *found]
    return run


def _check_strategy(name: str, settings: Settings) -> None:
    """What a strategy cannot do is refused, never left out silently."""
    for option, able in (("tensor_parallel", ("fsdp",)), ("cpu_offload", ("fsdp", "deepspeed"))):
        if getattr(settings, option) not in (1, False) and name not in able:
            raise SettingsError(
                f"--{option.replace('_', '-')} needs --strategy {' or '.join(able)}, and this run's is {name}."
            )


def _reference(
    policy: TokenModel, settings: Settings, objects: Objects, strategy: Strategy
) -> Reference | MovingReference:
    """The reference; a model of its own is not in memory before ``begin_reference``, if its weights have a name."""
    if settings.reference_every is not None:
        return MovingReference(policy, settings.reference_rate, settings.reference_every)
    name = settings.reference_model
    if name is None and objects.model is None and not hasattr(policy.model, "peft_config"):
        name = settings.model
    if name is None:
        return Reference(policy, strategy)
    later = functools.partial(load_module, name, settings, choose_device(settings), "vocabulary", None)
    return Reference(policy, strategy, later=later)


def _place(teacher: Any, reference: Any, strategy: Strategy) -> None:
    """A teacher with weights of its own is spread like the policy's reference; one that follows begins here."""
    if isinstance(teacher, ModelTeacher):
        strategy.prepare(teacher.model)
    for model in (teacher, reference):
        if isinstance(model, Average) and strategy.together:
            raise SettingsError(
                "A reference or teacher that follows the policy keeps a second set of weights that changes places with "
                f"the first, which cannot be done while --strategy {strategy.name} spreads them. Use --strategy ddp."
            )
        if isinstance(model, Average):
            model.start()


def _start(
    policy: TokenModel, reference: Reference | MovingReference | None, settings: Settings, strategy: Strategy
) -> Reference:
    """The policy as it is at the start: the reference, where that is not another model."""
    if isinstance(reference, Reference) and settings.reference_model is None:
        return reference
    return Reference(policy, strategy)


def _head(card: Card, config: Any) -> str:
    """What the model ends in."""
    if card.needs_now("reward-head", config):
        return "score"
    return "steps" if card.needs_now("step-head", config) else "vocabulary"


def _add_modules(method: Method, config: Any, policy: TokenModel) -> None:
    """The method's own modules, trained with the model."""
    width = policy.inner.config.get_text_config().hidden_size
    for name, module in method.extra_modules(config=config, hidden_size=width).items():
        policy.extra.add_module(name, module.to(policy.device))


def _judge(settings: Settings, objects: Objects, tokenizer: Any) -> Any:
    from posttrain.rewards.judge import load_judge

    named: Any = objects.judge if objects.judge is not None else settings.judge
    limit = settings.reward_timeout or None
    return None if named is None else load_judge(named, settings.judge_options or {}, tokenizer, limit)


def _sources(run: Run, data: Prepared) -> None:
    settings = run.settings
    if run.card.online:
        generator = make_generator(run)
        run.correction = choose_correction(settings, settings.max_staleness > 0 or not generator.abilities.exact)
        run.source = Online(run, Collector(run, data.train, generator, data.rewards, data.judge))
        if data.held_out is not None and (data.rewards or run.teacher is not None):
            limit = settings.eval_batches and settings.eval_batches * settings.batch_size
            run.evaluation = GreedyAnswers(Collector(run, data.held_out, generator, data.rewards), limit)
        return
    if settings.streaming:
        run.source = Stream(data.train, settings)
    else:
        run.source = Offline(data.train, order_of(len(data.train), settings), settings)
    if data.held_out is not None:
        run.evaluation = HeldOutLoss(data.held_out, settings.eval_batches, settings.batch_size)


def run_facts(run: Run, data: Prepared, objects: Objects, method_name: str) -> dict[str, Any]:
    """The content of run.json."""
    card = run.card
    return {
        "format": 1,
        "method": method_name,
        "card": {"name": card.name, "version": card.version, "tier": card.tier, "schema": card.schemas[0]},
        "modifiers": described(run.method),
        "settings": hidden(run.settings.flat()),
        "options": dataclasses.asdict(run.config),
        "total_steps": run.total,
        "parameters": run.sizes,
        "data": data.report,
        "notes": data.notes,
        "in_memory": [
            n for n in ("model", "data", "eval_data", "reward", "teacher", "judge") if _is_object(getattr(objects, n))
        ],
        "strategy": {"name": run.strategy.name, "world": run.strategy.world},
        "versions": facts.versions(),
        "hardware": facts.hardware(),
        "code": facts.code(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _is_object(value: Any) -> bool:
    return any(not isinstance(item, str) for item in value) if isinstance(value, list) else value is not None


def _check_settings(card: Card, settings: Settings, objects: Objects) -> None:
    if not settings.model and objects.model is None:
        raise SettingsError("No model was given. Name a folder, a Hub id or a .gguf file: --model MODEL")
    if not settings.data and objects.data is None:
        raise SettingsError(f"No data was given. '{card.name}' takes {' or '.join(card.schemas)} rows: --data FILE")
    if objects.model is not None and objects.tokenizer is None:
        raise SettingsError("A model in memory needs its tokenizer: train(..., model=model, tokenizer=tokenizer)")
    if settings.streaming and card.online:
        raise SettingsError(
            f"'{card.name}' draws prompts at random and needs all of them at hand. Leave streaming out; the first N "
            "rows alone are read with --limit N."
        )
    if card.online:
        check_generation(settings)
    check_values(settings)
    for name in settings.observers or []:
        load_observer(name)  # one that is absent, broken or not allowed is known before anything is read
    checks = {
        "batch-size": settings.batch_size >= 1,
        "steps": settings.steps is None or settings.steps >= 1,
        "epochs": settings.epochs > 0,
        "micro-batch-size": settings.micro_batch_size is None or settings.micro_batch_size >= 1,
        "head-chunk-tokens": settings.head_chunk_tokens is None or settings.head_chunk_tokens >= 1,
        "learning-rate": settings.learning_rate >= 0,
        "max-length": settings.max_length is None or settings.max_length >= 2,
        "reference-every": settings.reference_every is None or settings.reference_every >= 1,
        "group-size": not card.online or settings.group_size >= 1,
        "save-total": settings.save_total >= 1,
        "max-staleness": settings.max_staleness >= 0,
    }
    for name, fine in checks.items():
        if not fine:
            raise SettingsError(f"{name} is {getattr(settings, name.replace('-', '_'))}, expected a larger number.")
    if not 0 <= settings.eval_fraction < 1:
        raise SettingsError(f"eval-fraction is {settings.eval_fraction}, expected a number from 0 to below 1.")
    if settings.offload_activations and choose_device(settings).type != "cuda":
        raise SettingsError(
            "offload-activations moves them out of a GPU's memory, and this run has none. Leave it out."
        )
    if settings.reference_every is not None and settings.reference_model is not None:
        raise SettingsError(
            f"The reference is '{settings.reference_model}' and also follows the policy every "
            f"{settings.reference_every} steps. Leave out --reference-model, or set reference-every to none."
        )
    if not 0 < settings.reference_rate <= 1:
        raise SettingsError(f"reference-rate is {settings.reference_rate}, expected a number above 0 and up to 1.")
    evaluated = bool(settings.eval_data or settings.eval_fraction or objects.eval_data is not None)
    for name in ("save_best", "early_stopping", "eval_every"):
        if getattr(settings, name) and not evaluated:
            raise SettingsError(
                f"{name.replace('_', '-')} needs held-out rows. Add --eval-data FILE or --eval-fraction 0.05."
            )


def _check_columns(card: Card, config: Any, rows: Any) -> None:
    """Raise DataError for a row without a column that the card asks for; of streamed rows the first is looked at."""
    for name in card.columns_now(config):
        for origin, row in itertools.islice(rows.located(), 1 if rows.streaming else None):
            if row.get(name) is None:
                raise DataError(
                    f"{origin}: column '{name}' is missing. Method '{card.name}' needs it with these options; where "
                    f"it has another name, add --columns {name}=NAME"
                )


def _split(rows: Any, settings: Settings) -> tuple[Any, Any]:
    count = round(len(rows) * settings.eval_fraction)
    if not 0 < count < len(rows):
        raise SettingsError(
            f"eval-fraction {settings.eval_fraction} of {len(rows)} rows is {count}. "
            "Expected at least one row on both sides."
        )
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(settings.seed)).tolist()
    return rows.subset(sorted(order[count:])), rows.subset(sorted(order[:count]))


def _rewards(card: Card, settings: Settings, objects: Objects, tokenizer: Any, rows: Any) -> list[Reward]:
    named: Any = objects.reward if objects.reward is not None else settings.reward
    if not named and rows and "reasoning_gym" in rows[0]:
        named = ["reasoning-gym"]
    judged = settings.judge is not None or objects.judge is not None
    if not named and not judged and objects.data is None and is_data(settings.data):
        named = [REWARD]
    if not named:
        if "rewards" in card.needs or ("preferences" in card.needs and not judged):
            raise SettingsError(
                f"Method '{card.name}' learns from rewards and none was given. Name one: --reward gsm8k, "
                "--reward rewards.py:function, --reward FOLDER"
                + (" of a reward model; or a judge: --judge FOLDER or URL" if "preferences" in card.needs else "")
            )
        return []
    limit = settings.reward_timeout or None
    rewards = load_rewards(list(named), settings.reward_options or {}, tokenizer, limit=limit)
    check_columns(rewards, rows[0])
    return rewards
