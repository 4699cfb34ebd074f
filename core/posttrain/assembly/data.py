"""Read, split and tokenise a run's rows, and find its rewards and its judge."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from posttrain.assembly.check import check_episodes, check_needed_columns, check_settings
from posttrain.assembly.environment import Task, find_task, with_tools
from posttrain.catalogue.cards import Card
from posttrain.catalogue.methods import Method
from posttrain.data import prepare, read_rows, stream
from posttrain.data.reshape import reshape
from posttrain.data.tokens.notes import notes_of, within_positions
from posttrain.distillation.teacher import check_teacher
from posttrain.errors import SettingsError
from posttrain.example.example import REWARD, is_data
from posttrain.models.added_tokens import with_tokens
from posttrain.models.generation_config import stop_ids
from posttrain.models.load import load_tokenizer, stop_ids_of
from posttrain.models.positions import learnt_positions, learnt_positions_of
from posttrain.rewards import Reward, check_columns, load_rewards
from posttrain.settings import DataSettings, ModelSettings, RolloutsSettings, Settings

if TYPE_CHECKING:
    from posttrain.assembly.objects import InMemory


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
    task: Task | None = None
    """The environment that answers the model, None for none."""


def cache_folder(settings: ModelSettings, what: str = "data") -> Path | None:
    """Where tokenised data, or another kind of thing, is kept; None for nowhere."""
    if settings.cache == "off":
        return None
    return Path(settings.cache or "~/.cache/posttrain").expanduser() / what


def prepare_data(method: Method, config: Any, settings: Settings, objects: InMemory) -> Prepared:
    """Rows read, checked and tokenised, rewards found; the tokenizer is the only part of the model that is read."""
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
    rows = read_rows(given, accepted, settings.data)
    held_out: Any = None
    if objects.eval_data is not None or settings.data.eval_data:
        source = objects.eval_data if objects.eval_data is not None else settings.data.eval_data
        whole = dataclasses.replace(settings.data, limit=None, streaming=False)
        held_out = read_rows(source, accepted, whole, what="eval-data")
    elif settings.data.eval_fraction:
        rows, held_out = _split(rows, settings.data)
    tokenizer = objects.tokenizer
    if tokenizer is None:
        tokenizer = load_tokenizer(settings.model.model, settings.model, settings.data.chat_template)
    else:
        tokenizer = with_tokens(tokenizer, settings.model.add_tokens)
    stops = (
        stop_ids_of(settings.model.model, tokenizer, settings.model)
        if objects.model is None
        else stop_ids(objects.model, tokenizer)
    )
    if task is not None:
        rows = with_tools(rows, task, tokenizer, settings.data)
        held_out = None if held_out is None else with_tools(held_out, task, tokenizer, settings.data)
    wanted, cut = _within_positions(settings, objects)
    if not card.online:
        rows = reshape(rows, method, config)
        held_out = None if held_out is None else reshape(held_out, method, config)
    for some in (rows, held_out):
        if some is not None:
            check_needed_columns(card, config, some)
    if card.needs_now("teacher", config):
        aligned = method.takes("posttrain_token_statistics", "alignment")
        check_teacher(card.name, settings.teacher, settings.model, objects.teacher, tokenizer, aligned)
    rewards = (
        _rewards(card, settings.rollouts, settings.data.data, objects, tokenizer, rows, task) if card.online else []
    )
    notes = [*rows.notes, *cut]
    if settings.data.streaming:
        train: Any = lambda skip: stream(rows, tokenizer, wanted, stops, wanted.seed, skip)  # noqa: E731
        report: dict[str, Any] = {"streaming": True}
    else:
        train = prepare(rows, tokenizer, wanted, stops, cache_folder(settings.model))
        report = dict(train.report)
        notes += notes_of(report, tokenizer, stops)
    if held_out is not None:
        held_out = prepare(held_out, tokenizer, wanted, stops, cache_folder(settings.model))
        report["eval"] = dict(held_out.report)
    judge = _judge(settings.rollouts, objects, tokenizer) if card.online else None
    return Prepared(tokenizer, stops, train, held_out, rewards, judge, report, notes, task)


def _within_positions(settings: Settings, objects: InMemory) -> tuple[DataSettings, list[str]]:
    if objects.model is None:
        positions = learnt_positions_of(settings.model.model, settings.model)
    else:
        positions = learnt_positions(objects.model.config)
    return within_positions(settings.data, positions)


def _judge(settings: RolloutsSettings, objects: InMemory, tokenizer: Any) -> Any:
    from posttrain.rewards.judge import load_judge

    named: Any = objects.judge if objects.judge is not None else settings.judge
    limit = settings.reward_timeout or None
    return None if named is None else load_judge(named, settings.judge_options or {}, tokenizer, limit)


def _split(rows: Any, settings: DataSettings) -> tuple[Any, Any]:
    count = round(len(rows) * settings.eval_fraction)
    if not 0 < count < len(rows):
        raise SettingsError(
            f"eval-fraction {settings.eval_fraction} of {len(rows)} rows is {count}. "
            "Expected at least one row on both sides."
        )
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(settings.seed)).tolist()
    return rows.subset(sorted(order[count:])), rows.subset(sorted(order[:count]))


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
    rewards = load_rewards(list(named), settings.reward_options or {}, tokenizer, limit=limit)
    check_columns(rewards, rows[0] if task is None else {**rows[0], "messages": None})
    return rewards
