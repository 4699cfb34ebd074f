"""Modifiers: methods that change one part of another, and the order of a run's parts.

The parts of a run are its method and then its modifiers, in the given order. A method without modifiers is one part.
Letters in shapes: B completions, T tokens of the longest one.
"""

from __future__ import annotations

import dataclasses
import inspect
from types import CodeType
from typing import Any

import torch
from torch import Tensor

from posttrain.catalogue.defaults import split_modifier
from posttrain.catalogue.methods import Method, load
from posttrain.contract.loss_terms import split_loss
from posttrain.contract.surrogate import policy_loss
from posttrain.contract.tensors import group_advantages
from posttrain.contract.views import Batch, Step, Views
from posttrain.errors import PluginError, SettingsError
from posttrain.settings import Settings

#: Added to the standard deviation of a group's rewards by a modifier trained alone without an option for it.
EPSILON = 1e-6
Parts = list[tuple[Method, Any]]


class Modified(Method):
    """A method with modifiers: every hook calls the method first, then the modifiers in the given order."""

    def __init__(self, method: Method, modifiers: Parts):
        self.method, self.modifiers = method, modifiers
        self.module, self._relay, self.Config = method.module, method._relay, method.Config
        self.notes = [note for part in (method, *(modifier for modifier, _ in modifiers)) for note in part.notes]
        needs = [need for one, config in modifiers for need in one.card.needs_all(config)]
        columns = [column for one, config in modifiers for column in one.card.columns_now(config)]
        self.card = dataclasses.replace(
            method.card, needs=(*method.card.needs, *needs), columns=(*method.card.columns, *columns)
        )

    def implements(self, hook: str) -> bool:
        """Return whether the method or a modifier answers ``hook``."""
        return self.method.implements(hook) or any(modifier.implements(hook) for modifier, _ in self.modifiers)

    def takes(self, hook: str, argument: str) -> bool:
        """Return whether the method or a modifier takes ``argument`` in ``hook``."""
        return any(part.takes(hook, argument) for part, _ in self._parts(None))

    def loss(self, *, batch: Batch, policy: Views, reference: Views | None, config: Any, step: Step) -> Any:
        """Return the loss of all parts together."""
        return stacked_loss(self._parts(config), batch, policy, reference, step)

    def token_statistics(self, *, config: Any, state: dict[str, Any] | None = None, **given: Any) -> dict[str, Tensor]:
        """Return the statistics of all parts; a modifier's override those of the same name."""
        found: dict[str, Tensor] = {}
        for (part, own), its_state in self._with_states(config, state, "posttrain_token_statistics"):
            found |= part.token_statistics(config=own, state=its_state, **given)
        return found

    def advantages_and_columns(
        self, *, rewards: Tensor, rollouts: Any, config: Any, state: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the method's advantages as changed by the modifiers, and the columns of all."""
        current = rewards
        columns: dict[str, Tensor] = {}
        for (part, own), its_state in self._with_states(config, state, "posttrain_advantages"):
            current, more = part.own_worth(rewards, rollouts, own, its_state, current)
            columns |= more
        return current, columns

    def select(self, *, rollouts: Any, rewards: Tensor, config: Any, state: dict[str, Any]) -> Any:
        """Return the selection of the only part that makes one."""
        (((part, own), its_state),) = self._with_states(config, state, "posttrain_select")
        return part.select(rollouts=rollouts, rewards=rewards, config=own, state=its_state)

    def annotate(self, *, examples: list[Any], models: Any, config: Any, state: dict[str, Any]) -> dict[str, Any]:
        """Return the columns of all parts."""
        columns: dict[str, Any] = {}
        for (part, own), its_state in self._with_states(config, state, "posttrain_annotate"):
            columns |= part.annotate(examples=examples, models=models, config=own, state=its_state) or {}
        return columns

    def after_step(self, *, step: Step, metrics: dict[str, Any], config: Any, state: dict[str, Any]) -> None:
        """Call the hook of every part with its own state."""
        for (part, own), its_state in self._with_states(config, state, "posttrain_after_step"):
            part.after_step(step=step, metrics=metrics, config=own, state=its_state)

    def _parts(self, config: Any) -> Parts:
        return [(self.method, config), *self.modifiers]

    def _with_states(self, config: Any, state: dict[str, Any] | None, hook: str) -> list[Any]:
        """Return the parts that answer ``hook``, each with its own part of the run's state."""
        state = {} if state is None else state
        states = [state, *(state.setdefault(f"modifier {one.name}", {}) for one, _ in self.modifiers)]
        pairs = zip(self._parts(config), states, strict=True)
        return [pair for place, pair in enumerate(pairs) if _answers(pair[0][0], hook, first=place == 0)]


def _answers(part: Method, hook: str, first: bool) -> bool:
    """Return whether to call a part: the core's default answers apply to the method only."""
    return part.has(hook) if first else part.implements(hook)


def apply_modifiers(method: Method, settings: Settings) -> Method:
    """Wrap ``method`` with the modifiers in the settings. Raises SettingsError, MethodError or PluginError."""
    if not settings.rollouts.modifier or isinstance(method, Modified):
        return method
    modifiers = [_modifier(text, settings) for text in settings.rollouts.modifier]
    names = [one.name for one, _ in modifiers]
    for name in names:
        if names.count(name) > 1 or name == method.name:
            raise SettingsError(f"Modifier '{name}' is applied twice. Leave one of them out.")
    for one, _ in modifiers:
        _check_fit(method, one)
    selecting = [one.name for one in (method, *(one for one, _ in modifiers)) if one.implements("posttrain_select")]
    if len(selecting) > 1:
        raise SettingsError(f"{' and '.join(map(repr, selecting))} both choose what is learnt from. Leave one out.")
    return Modified(method, modifiers)


def described(method: Method) -> list[dict[str, Any]]:
    """Return the modifiers of a run as in ``run.json``: name, version and options."""
    return [
        {
            "name": one.name,
            "version": one.card.version,
            "options": {key: value for key, value in dataclasses.asdict(own).items() if key not in one.card.alone},
        }
        for one, own in getattr(method, "modifiers", ())
    ]


def _modifier(text: str, settings: Settings) -> tuple[Method, Any]:
    """Load and check a modifier and its options."""
    name, given = split_modifier(text)
    method = load(name)
    if not method.card.modifier:
        raise SettingsError(f"Method '{method.name}' is no modifier. Modifiers: posttrain list-methods --modifiers")
    for key in given:
        if key in method.card.alone:
            raise SettingsError(
                f"Option '{key}' of modifier '{method.name}' counts only where it is trained alone. Give it to the "
                f"method that it modifies: --{key.replace('_', '-')}"
            )
    return method, method.config(given, settings)


def _check_fit(method: Method, modifier: Method) -> None:
    """Raise SettingsError if the method has nothing that the modifier could change."""
    card = method.card
    if not card.online or card.pairs:
        raise SettingsError(f"Modifier '{modifier.name}' needs a method with rewards; '{card.name}' has no advantages.")
    if modifier.implements("posttrain_loss") and not modifier.takes("posttrain_loss", "inner"):
        return  # the method's own loss is not called
    if method.implements("posttrain_loss") and not _reads(method.module, "posttrain_loss", "advantages"):
        raise SettingsError(f"Modifier '{modifier.name}' changes advantages, which the loss of '{card.name}' ignores.")
    if modifier.implements("posttrain_token_weights") and not card.token_advantages:
        raise SettingsError(
            f"Modifier '{modifier.name}' weighs tokens, and the loss of '{card.name}' takes one advantage a completion."
        )


def _reads(module: Any, function: str, name: str) -> bool:
    """Return whether a function, or one of its module that it calls, uses an attribute or a text ``name``."""
    seen: set[str] = set()
    waiting = [function]
    while waiting:
        code = getattr(inspect.unwrap(getattr(module, waiting.pop())), "__code__", None)
        codes = [code] if code is not None else []
        while codes:
            one = codes.pop()
            if name in one.co_names or name in one.co_consts:
                return True
            codes += [const for const in one.co_consts if isinstance(const, CodeType)]
            own = {each for each in one.co_names if inspect.isfunction(getattr(module, each, None))} - seen
            seen |= own
            waiting += own
    return False


def initial_advantages(method: Method, rewards: Tensor, rollouts: Any, config: Any) -> Tensor:
    """Return a method's advantages ``(B,)`` before its hook: the rewards; for a modifier trained alone GRPO's."""
    if not method.card.modifier:
        return rewards
    return group_advantages(rewards, rollouts.group, getattr(config, "advantage_epsilon", EPSILON))


def stacked_loss(parts: Parts, batch: Batch, policy: Views, reference: Views | None, step: Step) -> Any:
    """Return the loss of the last part that has one, with all parts' token weights; by default ``policy_loss``.

    Weights multiply the clipped policy gradient of ``policy_loss``, or the advantages that any other loss reads: this
    weights a loss that is linear in them, as a policy gradient is, but not a divergence from the reference.
    """
    weights, metrics = _token_weights(parts, batch, policy, step)
    weighted = plain = batch
    if weights is not None:
        worth = batch.advantages.reshape(len(weights), -1)  # (B, 1) or (B, T)
        weighted = Batch(batch.size, batch.columns | {"advantages": weights * worth})
        plain = Batch(batch.size, batch.columns | {"token_weights": weights})

    def layer(place: int) -> Any:
        while place >= 0 and not parts[place][0].implements("posttrain_loss"):
            place -= 1
        if place < 0:
            first, config = parts[0]
            # the method's own loss, if it has one with this one inside, adds the divergence
            charged = first.card.needs_now("reference", config) and not first.implements("posttrain_loss")
            given = reference if charged else None
            return policy_loss(plain, policy, config, given)
        method, config = parts[place]
        inner = split_loss(layer(place - 1), method.name) if method.takes("posttrain_loss", "inner") else None
        return method.own_loss(weighted, policy, reference, config, step, inner)

    returned = layer(len(parts) - 1)
    if len(parts) == 1 and not parts[0][0].card.modifier and not metrics:
        return returned  # a method without modifiers: as returned
    terms, found = split_loss(returned, parts[0][0].name)
    return terms["loss"] if set(terms) == {"loss"} else terms, found | metrics


def _token_weights(parts: Parts, batch: Batch, policy: Views, step: Step) -> tuple[Tensor | None, dict[str, Any]]:
    """Return the product of the weights of all parts ``(B, T)``, None without any, and their metrics."""
    product: Tensor | None = None
    metrics: dict[str, Any] = {}
    for method, config in parts:
        if not method.implements("posttrain_token_weights"):
            continue
        returned = method.own_token_weights(batch, policy, config, step)
        weights, found = returned if isinstance(returned, tuple) else (returned, {})
        weights = _checked(weights, policy.completion.mask, method.name)
        product = weights if product is None else product * weights
        # two parts may have a metric of the same name
        metrics |= {f"{method.name}_{name}" if name in metrics else name: value for name, value in found.items()}
    return product, metrics


def _checked(weights: Any, mask: Tensor, name: str) -> Tensor:
    """Return weights as ``(B, T)`` without gradient. Raises PluginError for another shape or a negative weight."""
    shape = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
    if shape not in (tuple(mask.shape), (len(mask), 1)):
        raise PluginError(
            f"posttrain_token_weights of '{name}' returned {shape}. Expected one weight a token {tuple(mask.shape)}, "
            f"or one a completion {(len(mask), 1)}."
        )
    weights = torch.where(mask, weights.detach(), torch.zeros_like(weights))
    if bool((weights < 0).any()):
        raise PluginError(f"posttrain_token_weights of '{name}' returned a negative weight, {float(weights.min()):g}.")
    return weights
