"""Checks that refuse contradictory settings, before anything is loaded."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from posttrain.catalogue.cards import Card
from posttrain.catalogue.methods import Method
from posttrain.contract.generation import Generator
from posttrain.errors import DataError, SettingsError
from posttrain.generation.backends import check_generation
from posttrain.models.adapters import adapter_base
from posttrain.models.device import choose_device
from posttrain.runs.observers import load_observer
from posttrain.runs.report.page import library
from posttrain.runs.rules.registry import active_rules
from posttrain.runs.trackers import check_tracker
from posttrain.settings import DistributedSettings, EpisodeSettings, ModelSettings, Settings, names_of
from posttrain.settings.values import check_values

if TYPE_CHECKING:
    from posttrain.assembly.objects import InMemory


def check_strategy(name: str, settings: DistributedSettings, compiled: bool = False) -> None:
    """Raise SettingsError for settings that the strategy does not support; ``compiled``: layers are compiled."""
    several = [(option, ("fsdp",)) for option in ("tensor_parallel", "context_parallel", "expert_parallel")]
    for option, able in (*several, ("cpu_offload", ("fsdp", "deepspeed"))):
        if getattr(settings, option) not in (1, False) and name not in able:
            raise SettingsError(
                f"--{option.replace('_', '-')} needs --strategy {' or '.join(able)}, and this run's is {name}."
            )
    inside = [option for option, _ in several if getattr(settings, option) > 1]
    if compiled and (name == "deepspeed" or inside):
        what = "deepspeed gathers and frees" if name == "deepspeed" else f"--{inside[0].replace('_', '-')} divides"
        raise SettingsError(f"--compile compiles whole layers, and {what} parts of them. Leave one of them out.")


def check_sampling(settings: DistributedSettings, generator: Generator) -> None:
    """Raise SettingsError where the sampler runs a policy whose experts are divided."""
    if settings.expert_parallel > 1 and not generator.abilities.own_weights:
        generator.close()
        raise SettingsError(
            f"--expert-parallel {settings.expert_parallel} divides the experts, and processes that sample for "
            "themselves would wait for each other's tokens. Sample with weights of its own: --generation-process, "
            "--generation vllm or --generation vllm-server."
        )


def check_context(method: Method, settings: Settings) -> None:
    """Raise SettingsError for what needs whole rows where passes are cut by their tokens."""
    size, hook = settings.distributed.context_parallel, "posttrain_token_statistics"
    if size == 1:
        return
    others = [name for name in ("reference_logits", "teacher_logits") if method.takes(hook, name)]
    if others:
        raise SettingsError(
            f"'{method.card.name}' compares logits of two models token by token ({others[0]}), and --context-parallel "
            f"{size} gives each process other tokens of each. Leave it out."
        )
    if settings.optim.neftune_alpha:
        raise SettingsError(
            "--context-parallel cuts rows, and neftune-alpha draws its noise for whole ones. Leave one out."
        )


def check_episodes(card: Card, settings: EpisodeSettings, objects: InMemory) -> None:
    """Raise SettingsError for an environment or tools in a run without sampling."""
    given = settings.environment or objects.environment or settings.tools or objects.tools
    if given and not card.online:
        raise SettingsError(
            f"'{card.name}' learns from data, and an environment or tools answer a model that is sampled from. Leave "
            "them out, or choose an online method: posttrain list-methods --schema prompt"
        )


def check_replay(card: Card, settings: Settings) -> None:
    """Raise SettingsError where experts are to be replayed that no sampler records."""
    if not settings.rollouts.router_replay:
        return
    if not card.online:
        raise SettingsError(
            f"router-replay replays the experts that the sampler chose, and '{card.name}' learns from data. Leave it "
            "out, or choose an online method: posttrain list-methods --schema prompt"
        )
    if settings.generation.generation != "hf":
        raise SettingsError(
            f"router-replay needs the experts that the sampler chose for each token, and generation "
            f"'{settings.generation.generation}' does not return them to the run. Use --generation hf, or leave it "
            "out: --correction weights what another engine computes otherwise."
        )


def check_settings(card: Card, settings: Settings, objects: InMemory) -> None:
    """Raise SettingsError for settings that the method or other settings exclude."""
    if not settings.model.model and objects.model is None:
        raise SettingsError("No model was given. Name a folder, a Hub id or a .gguf file: --model MODEL")
    own = settings.episodes.environment is not None or objects.environment is not None  # the environment may bring rows
    if not settings.data.data and objects.data is None and not own:
        raise SettingsError(f"No data was given. '{card.name}' takes {' or '.join(card.schemas)} rows: --data FILE")
    if objects.model is not None and objects.tokenizer is None:
        raise SettingsError("A model in memory needs its tokenizer: train(..., model=model, tokenizer=tokenizer)")
    if settings.data.streaming and card.online:
        raise SettingsError(
            f"'{card.name}' draws prompts at random and needs all of them at hand. Leave streaming out; the first N "
            "rows alone are read with --limit N."
        )
    check_replay(card, settings)
    if card.online:
        check_generation(settings.generation)
    check_values(settings.flat())
    for name in settings.watch.observers or []:
        load_observer(name)  # an observer that is missing, broken or not allowed is found before anything is read
    for name in settings.watch.track or []:
        check_tracker(name)
    if settings.watch.report:
        library()  # raises where Bokeh is not installed
    settings.check()
    active_rules(settings.watch.rules, settings.watch.rule_options)
    if settings.memory.offload_activations and choose_device(settings.model).type != "cuda":
        raise SettingsError(
            "offload-activations moves them out of a GPU's memory, and this run has none. Leave it out."
        )
    if settings.optim.neftune_alpha and card.online:
        raise SettingsError(
            f"neftune-alpha adds noise to given texts, and '{card.name}' compares the policy with its own samples, "
            "which are made without. Leave it out."
        )
    for name in ("ema_decay", "average_last"):
        if getattr(settings.optim, name) is not None and settings.watch.save_best:
            raise SettingsError(
                f"save-best saves one checkpoint and {name.replace('_', '-')} an average. Leave one of them out."
            )
    if settings.optim.average_last is not None and settings.watch.save_every is None:
        raise SettingsError("average-last averages the checkpoints that --save-every N makes. Add it.")
    evaluated = bool(settings.data.eval_data or settings.data.eval_fraction or objects.eval_data is not None)
    for name in ("save_best", "early_stopping", "eval_every"):
        if getattr(settings.watch, name) and not evaluated:
            raise SettingsError(
                f"{name.replace('_', '-')} needs held-out rows. Add --eval-data FILE or --eval-fraction 0.05."
            )


def idle_options(model: ModelSettings) -> list[str]:
    """Say which options of an adapter have no effect, since none is made."""
    if model.lora or model.dora or model.quantize or model.adapter_config:
        return []
    plain = ModelSettings()
    names = [name for name in names_of("model") if name.startswith("lora_")]
    given = [name.replace("_", "-") for name in names if getattr(model, name) != getattr(plain, name)]
    if not given:
        return []
    continued = bool(model.model) and adapter_base(model.model) is not None
    why = f"the adapter in '{model.model}' keeps its own" if continued else "no adapter is trained; add --lora"
    return [f"{', '.join(given)}: no effect, {why}."]


def check_needed_columns(card: Card, config: Any, rows: Any) -> None:
    """Raise DataError for a row without a column that the card needs; of streamed rows only the first is checked."""
    for name in card.columns_now(config):
        for origin, row in itertools.islice(rows.located(), 1 if rows.streaming else None):
            if row.get(name) is None:
                raise DataError(
                    f"{origin}: column '{name}' is missing. Method '{card.name}' needs it with these options; where "
                    f"it has another name, add --columns {name}=NAME"
                )
