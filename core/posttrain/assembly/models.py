"""Building the models beside the policy: reference, teacher, extra modules."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.catalogue.cards import Card
from posttrain.catalogue.methods import Method
from posttrain.distillation.teacher import ModelTeacher
from posttrain.errors import SettingsError
from posttrain.models.average import WeightAverage
from posttrain.models.device import choose_device
from posttrain.models.ema import EmaModel
from posttrain.models.load import load_module
from posttrain.models.reference import MovingReference, Reference
from posttrain.network.token_model import TokenModel
from posttrain.runs.checkpoints import model_in
from posttrain.settings import ModelSettings, OptimSettings, ReferenceSettings, Settings
from posttrain.training.strategy import Strategy

if TYPE_CHECKING:
    from posttrain.assembly.objects import InMemory


#: Options that name a model.
_MODELS = ("model", "reference_model", "teacher_model", "draft_model")


def from_runs(settings: Settings) -> Settings:
    """Return the settings with the model's folder in the place of each run directory that is named as a model.

    Raises CheckpointError for a run without a model.
    """
    named = {name: value for name, value in settings.flat().items() if name in _MODELS and value}
    found = {name: model_in(value) for name, value in named.items()}
    return settings.replace(**found) if found != named else settings


def check_apart(output: Path, settings: Settings) -> None:
    """Raise SettingsError where a model lies in the run directory that the run replaces: it would be deleted."""
    for name, value in settings.flat().items():
        folder = Path(value).expanduser() if name in _MODELS and value else None
        if folder is not None and folder.exists() and folder.resolve().is_relative_to(output.resolve()):
            raise SettingsError(
                f"{name.replace('_', '-')} '{value}' lies in '{output}', which --overwrite empties. Choose another "
                "--output."
            )


def build_reference(
    policy: TokenModel,
    settings: ReferenceSettings,
    loading: ModelSettings,
    objects: InMemory,
    strategy: Strategy,
) -> Reference | MovingReference:
    """Build the reference; a separate model is loaded only in ``begin_reference``, if its weights have a name."""
    if settings.reference_every is not None:
        return MovingReference(policy, settings.reference_rate, settings.reference_every)
    name = settings.reference_model
    if name is None and objects.model is None and not hasattr(policy.model, "peft_config") and not loading.add_tokens:
        name = loading.model
    if name is None:
        return Reference(policy, strategy)
    later = functools.partial(load_module, name, loading, choose_device(loading), "vocabulary", None)
    return Reference(policy, strategy, later=later)


def place_models(teacher: Any, reference: Any, strategy: Strategy) -> None:
    """Shard a teacher's own weights like those of the policy's reference; a moving reference begins here."""
    if isinstance(teacher, ModelTeacher):
        strategy.prepare(teacher.model)
    for model in (teacher, reference):
        if isinstance(model, EmaModel) and strategy.shards_forward:
            raise SettingsError(
                "A reference or teacher that follows the policy keeps a second set of weights that changes places with "
                f"the first, which cannot be done while --strategy {strategy.name} spreads them. Use --strategy ddp."
            )
        if isinstance(model, EmaModel):
            model.start()


def make_average(policy: TokenModel, settings: OptimSettings, strategy: Strategy) -> WeightAverage | None:
    """Build the moving average that is saved at the end, if wanted. Raises SettingsError where weights are sharded."""
    if strategy.shards_forward and (settings.ema_decay is not None or settings.average_last is not None):
        name = "ema-decay" if settings.average_last is None else "average-last"
        raise SettingsError(
            f"{name} keeps a second set of whole weights, and --strategy {strategy.name} spreads them. "
            "Use --strategy ddp."
        )
    return None if settings.ema_decay is None else WeightAverage(policy, settings.ema_decay)


def untrained_policy(
    policy: TokenModel, reference: Reference | MovingReference | None, settings: ReferenceSettings, strategy: Strategy
) -> Reference:
    """Return the policy as it is at the start: the reference, where that is not another model."""
    if isinstance(reference, Reference) and settings.reference_model is None:
        return reference
    return Reference(policy, strategy)


def head_kind(card: Card, config: Any) -> str:
    """Return the kind of the model's head."""
    if card.needs_now("reward-head", config):
        return "score"
    return "steps" if card.needs_now("step-head", config) else "vocabulary"


def add_extra_modules(method: Method, config: Any, policy: TokenModel) -> None:
    """Add the method's own modules, which are trained with the model."""
    width = policy.inner.config.get_text_config().hidden_size
    for name, module in method.extra_modules(config=config, hidden_size=width).items():
        policy.extra.add_module(name, module.to(policy.device))
