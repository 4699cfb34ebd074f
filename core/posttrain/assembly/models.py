"""Build the models beside the policy: reference, teacher, extra modules."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from posttrain.catalogue.cards import Card
from posttrain.catalogue.methods import Method
from posttrain.distillation.teacher import ModelTeacher
from posttrain.errors import SettingsError
from posttrain.models.average import WeightAverage
from posttrain.models.ema import EmaModel
from posttrain.models.load import choose_device, load_module
from posttrain.models.reference import MovingReference, Reference
from posttrain.network.token_model import TokenModel
from posttrain.settings import ModelSettings, OptimSettings, ReferenceSettings
from posttrain.training.strategy import Strategy

if TYPE_CHECKING:
    from posttrain.assembly.objects import InMemory


def build_reference(
    policy: TokenModel,
    settings: ReferenceSettings,
    loading: ModelSettings,
    objects: InMemory,
    strategy: Strategy,
) -> Reference | MovingReference:
    """The reference; a model of its own is not in memory before ``begin_reference``, if its weights have a name."""
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
    """A teacher with weights of its own is spread like the policy's reference; one that follows begins here."""
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
    """The moving average that the end saves, if one was asked for. Raises SettingsError where weights are spread."""
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
    """The policy as it is at the start: the reference, where that is not another model."""
    if isinstance(reference, Reference) and settings.reference_model is None:
        return reference
    return Reference(policy, strategy)


def head_kind(card: Card, config: Any) -> str:
    """What the model ends in."""
    if card.needs_now("reward-head", config):
        return "score"
    return "steps" if card.needs_now("step-head", config) else "vocabulary"


def add_extra_modules(method: Method, config: Any, policy: TokenModel) -> None:
    """The method's own modules, trained with the model."""
    width = policy.inner.config.get_text_config().hidden_size
    for name, module in method.extra_modules(config=config, hidden_size=width).items():
        policy.extra.add_module(name, module.to(policy.device))
