"""Read, split and tokenise a run's rows, and find its rewards and its judge."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.assembly.check import check_episodes, check_needed_columns, check_settings, idle_options
from posttrain.assembly.environment import Task, find_task, with_tools
from posttrain.assembly.held_out import LOOKED_AT, compare_sets, read_sets
from posttrain.catalogue.cards import Card
from posttrain.catalogue.methods import Method
from posttrain.data import prepare, stream
from posttrain.data.check import beside_tokens
from posttrain.data.reshape import reshape
from posttrain.data.tokens.notes import notes_of, within_positions
from posttrain.distillation.teacher import check_teacher
from posttrain.errors import SettingsError
from posttrain.example.example import REWARD, is_data
from posttrain.models.added_tokens import with_tokens
from posttrain.models.generation_config import stop_ids
from posttrain.models.load import load_tokenizer, stop_ids_of
from posttrain.models.positions import learnt_positions, learnt_positions_of
from posttrain.models.processor import reader_for
from posttrain.network.image_reader import reader_of, with_reader
from posttrain.rewards import Reward, check_columns, load_rewards
from posttrain.settings import DataSettings, ModelSettings, RolloutsSettings, Settings

if TYPE_CHECKING:
    from posttrain.assembly.objects import InMemory


@dataclass
class Prepared:
    """The tokenised data of a run, with its rewards and judge; no weights yet."""

    tokenizer: Any
    stop_ids: set[int]
    train: Any
    held_out: dict[str, Any]
    """Held-out rows by the name of their set, "" for a set without a name."""
    rewards: list[Reward]
    judge: Any
    report: dict[str, Any]
    notes: list[str]
    task: Task | None = None
    """The run's environment; None for none."""


def cache_folder(settings: ModelSettings, what: str = "data") -> Path | None:
    """Return the cache folder for tokenised data, or another kind of content; None where caching is off."""
    if settings.cache == "off":
        return None
    return Path(settings.cache or "~/.cache/posttrain").expanduser() / what


def prepare_data(method: Method, config: Any, settings: Settings, objects: InMemory) -> Prepared:
    """Read, check and tokenise the rows and load the rewards; of the model only the tokenizer is read."""
    card = method.card
    check_settings(card, settings, objects)
    accepted = card.schemas
    check_episodes(card, settings.episodes, objects)
    task = find_task(settings.episodes, objects.environment, objects.tools) if card.online else None
    given: Any = objects.data if objects.data is not None else settings.data.data
    if not given and task is not None:
        given = task.rows()
        if not given:
            raise SettingsError(f"Environment '{task.name}' makes no rows. Give the prompts: --data FILE")
    asked: Any = objects.eval_data if objects.eval_data is not None else settings.data.eval_data or None
    rows, held_out = read_sets(given, asked, accepted, settings.data)
    overlap, doubled = compare_sets(rows, held_out, LOOKED_AT)
    tokenizer = objects.tokenizer
    if tokenizer is None:
        tokenizer = load_tokenizer(settings.model.model, settings.model, settings.data.chat_template)
    else:
        tokenizer = with_tokens(_handed_over(tokenizer, settings.model, objects), settings.model.add_tokens)
    stops = (
        stop_ids_of(settings.model.model, tokenizer, settings.model)
        if objects.model is None
        else stop_ids(objects.model, tokenizer)
    )
    if task is not None:
        rows = with_tools(rows, task, tokenizer, settings.data)
        held_out = {name: with_tools(some, task, tokenizer, settings.data) for name, some in held_out.items()}
    wanted, cut = _within_positions(settings.model, settings.data, objects)
    if not card.online:
        rows = reshape(rows, method, config)
        held_out = {name: reshape(some, method, config) for name, some in held_out.items()}
    for some in (rows, *held_out.values()):
        check_needed_columns(card, config, some)
    if card.needs_now("teacher", config):
        aligned = method.takes("posttrain_token_statistics", "alignment")
        check_teacher(card.name, settings.teacher, settings.model, objects.teacher, tokenizer, aligned)
    rewards = (
        _rewards(card, settings.rollouts, settings.data.data, objects, tokenizer, rows, task) if card.online else []
    )
    notes = [*rows.notes, *cut, *doubled, *idle_options(settings.model)]
    if not (card.online or rows.streaming):
        columns = dict.fromkeys(name for row in rows for name in row)
        notes += beside_tokens(rows.schema, columns, card.columns_now(config))
    train, report, found = _tokenised(rows, tokenizer, wanted, stops, settings.model)
    notes += found
    prepared = {}
    for name, some in held_out.items():
        prepared[name] = prepare(some, tokenizer, wanted, stops, cache_folder(settings.model))
        about = prepared[name].report | ({"in_training": overlap[name]} if name in overlap else {})
        report[f"eval_{name}" if name else "eval"] = about
    judge = _judge(settings.rollouts, objects, tokenizer) if card.online else None
    return Prepared(tokenizer, stops, train, prepared, rewards, judge, report, notes, task)


def _tokenised(
    rows: Any, tokenizer: Any, wanted: DataSettings, stops: set[int], settings: ModelSettings
) -> tuple[Any, dict[str, Any], list[str]]:
    """Tokenise the training rows, or return the function that opens their stream; also the report and its lines."""
    if rows.streaming:
        return (lambda skip: stream(rows, tokenizer, wanted, stops, wanted.seed, skip)), {"streaming": True}, []
    train = prepare(rows, tokenizer, wanted, stops, cache_folder(settings))
    return train, dict(train.report), notes_of(train.report, tokenizer, stops)


def _handed_over(tokenizer: Any, settings: ModelSettings, objects: InMemory) -> Any:
    """Return the tokenizer that a program passed; for a processor its own, with the image reader attached."""
    if not hasattr(tokenizer, "image_processor"):
        return tokenizer
    if objects.model is None:
        raise SettingsError(
            "A processor was handed over, and the model only named. Expected a model in memory beside it; one that is "
            "named brings its own processor."
        )
    return with_reader(tokenizer.tokenizer, reader_for(tokenizer, objects.model.config, settings.max_pixels))


def _within_positions(settings: ModelSettings, data: DataSettings, objects: InMemory) -> tuple[DataSettings, list[str]]:
    if objects.model is None:
        positions = learnt_positions_of(settings.model, settings)
    else:
        positions = learnt_positions(objects.model.config)
    return within_positions(data, positions)


def _judge(settings: RolloutsSettings, objects: InMemory, tokenizer: Any) -> Any:
    from posttrain.rewards.judge import load_judge

    named: Any = objects.judge if objects.judge is not None else settings.judge
    limit = settings.reward_timeout or None
    return None if named is None else load_judge(named, settings.judge_options or {}, tokenizer, limit)


def _rewards(
    card: Card,
    settings: RolloutsSettings,
    data: list[str] | None,
    objects: InMemory,
    tokenizer: Any,
    rows: Any,
    task: Task | None,
) -> list[Reward]:
    named: Any = objects.reward if objects.reward is not None else settings.reward
    if not named and rows and "reasoning_gym" in rows[0]:
        named = ["reasoning-gym"]
    judged = settings.judge is not None or objects.judge is not None
    if not named and not judged and objects.data is None and is_data(data):
        named = [REWARD]
    if not named:
        if task is not None and task.scores:
            return []
        if "rewards" in card.needs or ("preferences" in card.needs and not judged):
            raise SettingsError(
                f"Method '{card.name}' learns from rewards and none was given. Name one: --reward gsm8k, "
                "--reward rewards.py:function, --reward FOLDER"
                + (" of a reward model; or a judge: --judge FOLDER or URL" if "preferences" in card.needs else "")
            )
        return []
    limit = settings.reward_timeout or None
    rewards = load_rewards(
        list(named), settings.reward_options or {}, tokenizer, limit=limit, apart=settings.reward_process
    )
    given = {**rows[0]} if reader_of(tokenizer) is None else {**rows[0], "images": None}
    check_columns(rewards, given if task is None else {**given, "messages": None})
    return rewards
