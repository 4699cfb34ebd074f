"""Loading of exactly one method, and a typed wrapper of pluggy's relay to it. Nothing is loaded automatically."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy

from posttrain.catalogue.cards import Card
from posttrain.catalogue.defaults import shared_defaults
from posttrain.catalogue.discovery import locate
from posttrain.catalogue.entries import import_plugin
from posttrain.contract import deprecations, hookspecs
from posttrain.errors import PluginError, PosttrainError, SettingsError, closest
from posttrain.settings.options import cast

if TYPE_CHECKING:
    from torch import Tensor, nn

    from posttrain.contract.planning import SampleRequest, Selection
    from posttrain.contract.views import Batch, Step, Views
    from posttrain.settings import Settings

HOOKS = {name: spec for name, spec in vars(hookspecs).items() if name.startswith("posttrain_")}

#: Hooks that a modifier may implement: the others have one answer per run.
MODIFIER_HOOKS = (
    "posttrain_config",
    "posttrain_loss",
    "posttrain_token_weights",
    "posttrain_advantages",
    "posttrain_select",
    "posttrain_annotate",
    "posttrain_token_statistics",
    "posttrain_after_step",
)


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """Options of a method without any."""


class Method:
    """One loaded method: its card, its module, the class of its options, and its hooks as typed functions."""

    def __init__(self, card: Card, module: ModuleType, relay: pluggy.PluginManager):
        self.card = card
        self.module = module
        self._relay = relay
        self.notes: list[str] = []
        """Notes on the method, logged before a run starts."""
        self.Config: type = self._options()

    @property
    def name(self) -> str:
        """The method's name."""
        return self.card.name

    def has(self, hook: str) -> bool:
        """Return whether the method, or the core, answers ``hook`` (its full name, such as "posttrain_loss")."""
        return self.implements(hook) or hook in self._usual()

    def implements(self, hook: str) -> bool:
        """Return whether the method itself answers ``hook``."""
        if hook not in HOOKS:
            raise ValueError(f"there is no hook '{hook}'. Hooks: {', '.join(HOOKS)}")
        return bool(getattr(self._relay.hook, hook).get_hookimpls())

    def config(self, options: dict[str, Any], settings: Settings | None = None) -> Any:
        """Build an instance of ``Config``. Raises SettingsError for an unknown option or an invalid value.

        Options that follow a shared one take its value from ``settings`` [the method's defaults].
        """
        kinds = self._kinds()
        names = [field.name for field in dataclasses.fields(self.Config)]
        for key in options:
            if key not in names:
                raise SettingsError(_unknown_option(key, names, self.name))
        values = {key: cast(key, value, kinds[key]) for key, value in options.items()}
        for key, shared in self.card.follows.items():
            if values.get(key) is None:
                values[key] = shared_defaults(self.card)[shared] if settings is None else settings.get(shared)
        try:
            return self.Config(**values)
        except PosttrainError:
            raise
        except (ValueError, TypeError) as error:
            raise SettingsError(f"Method '{self.name}' does not take these options: {error}") from error

    def loss(self, *, batch: Batch, policy: Views, reference: Views | None, config: Any, step: Step) -> Any:
        """Return the unreduced loss, or ``(loss, metrics)``: the method's, or the clipped policy gradient."""
        if not self.card.online:
            return self.own_loss(batch, policy, reference, config, step)
        from posttrain.catalogue.modifiers import stacked_loss  # loading a method needs no torch

        return stacked_loss([(self, config)], batch, policy, reference, step)

    def own_loss(
        self, batch: Batch, policy: Views, reference: Views | None, config: Any, step: Step, inner: Any = None
    ) -> Any:
        """Call ``posttrain_loss``; ``inner`` is the loss that a modifier changes."""
        return self._relay.hook.posttrain_loss(
            batch=batch, policy=policy, reference=reference, config=config, step=step, inner=inner
        )

    def own_token_weights(self, batch: Batch, policy: Views, config: Any, step: Step) -> Any:
        """Call ``posttrain_token_weights``."""
        return self._relay.hook.posttrain_token_weights(batch=batch, policy=policy, config=config, step=step)

    def takes(self, hook: str, argument: str) -> bool:
        """Return whether the method implements ``hook`` with the parameter ``argument``."""
        return self.implements(hook) and argument in inspect.signature(getattr(self.module, hook)).parameters

    def token_statistics(
        self,
        *,
        logits: Tensor,
        labels: Tensor,
        config: Any,
        reference_logits: Tensor | None = None,
        teacher_logits: Tensor | None = None,
        alignment: Any = None,
        state: dict[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """Call ``posttrain_token_statistics``: per-token tensors ``(n,)`` by name, from logits ``(n, V)``.

        Online methods always have ``entropy``: their own, or the core's, without gradient.
        """
        found = self._relay.hook.posttrain_token_statistics(
            logits=logits,
            labels=labels,
            reference_logits=reference_logits,
            teacher_logits=teacher_logits,
            alignment=alignment,
            config=config,
            state={} if state is None else state,
        )
        if not self.card.online or "entropy" in (found or {}):
            return found
        from posttrain.contract.tensors import token_entropy  # loading a method needs no torch

        return {**(found or {}), "entropy": token_entropy(logits)}

    def rows(self, *, rows: list[dict[str, Any]], config: Any) -> list[dict[str, Any]]:
        """Call ``posttrain_rows``: the rows that the run trains on."""
        return self._relay.hook.posttrain_rows(rows=rows, config=config)

    def plan_rollouts(
        self, *, prompts: list[dict[str, Any]], group_size: int, config: Any, state: dict[str, Any], random: Any
    ) -> list[list[SampleRequest]]:
        """Call ``posttrain_plan_rollouts``: what to generate for each prompt."""
        return self._relay.hook.posttrain_plan_rollouts(
            prompts=prompts, group_size=group_size, config=config, state=state, random=random
        )

    def select(self, *, rollouts: Any, rewards: Tensor, config: Any, state: dict[str, Any]) -> Selection:
        """Call ``posttrain_select``: which rollouts to train on."""
        return self._relay.hook.posttrain_select(rollouts=rollouts, rewards=rewards, config=config, state=state)

    def teacher_prompts(self, *, rollouts: Any, rewards: Tensor, config: Any, state: dict[str, Any]) -> list[Any]:
        """Call ``posttrain_teacher_prompts``: the prompt under which the teacher sees each rollout."""
        return self._relay.hook.posttrain_teacher_prompts(
            rollouts=rollouts, rewards=rewards, config=config, state=state
        )

    def extra_modules(self, *, config: Any, hidden_size: int) -> dict[str, nn.Module]:
        """Call ``posttrain_extra_modules``: modules trained beside the model, by name; none without the hook."""
        if not self.has("posttrain_extra_modules"):
            return {}
        return self._relay.hook.posttrain_extra_modules(config=config, hidden_size=hidden_size)

    def advantages(
        self, *, rewards: Tensor, rollouts: Any, config: Any, state: dict[str, Any], advantages: Tensor | None = None
    ) -> Any:
        """Call ``posttrain_advantages``: a tensor for rewards ``(B,)``, or columns by name.

        ``advantages`` are those that a modifier changes.
        """
        return self._relay.hook.posttrain_advantages(
            rewards=rewards, rollouts=rollouts, advantages=advantages, config=config, state=state
        )

    def advantages_and_columns(
        self, *, rewards: Tensor, rollouts: Any, config: Any, state: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the advantages of the rollouts, and other columns: each ``(B,)`` or ``(B, T)``, without gradient.

        Without ``posttrain_advantages`` a method has the rewards themselves, a modifier GRPO's. Raises PluginError.
        """
        from posttrain.catalogue.modifiers import initial_advantages  # loading a method needs no torch

        return self.own_worth(rewards, rollouts, config, state, initial_advantages(self, rewards, rollouts, config))

    def own_worth(
        self, rewards: Tensor, rollouts: Any, config: Any, state: dict[str, Any], current: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Split ``posttrain_advantages`` into advantages and columns; ``current`` is its default and a modifier's
        input."""
        if not self.implements("posttrain_advantages"):
            return current, {}
        found = self.advantages(rewards=rewards, rollouts=rollouts, config=config, state=state, advantages=current)
        columns = dict(found) if isinstance(found, dict) else {"advantages": found}
        for name, values in {"advantages": None, **columns}.items():
            shape = getattr(values, "shape", type(values).__name__)
            if shape not in (rewards.shape, rollouts.mask.shape):
                shown = tuple(shape) if isinstance(shape, tuple) else shape
                raise PluginError(
                    f"posttrain_advantages of '{self.name}' returned {shown} for '{name}'. Expected one value a "
                    f"rollout {tuple(rewards.shape)} or one a token {tuple(rollouts.mask.shape)}."
                )
        return columns.pop("advantages").detach(), {name: values.detach() for name, values in columns.items()}

    def annotate(self, *, examples: list[Any], models: Any, config: Any, state: dict[str, Any]) -> dict[str, Any]:
        """Call ``posttrain_annotate``: columns by name for all examples of a step."""
        return self._relay.hook.posttrain_annotate(examples=examples, models=models, config=config, state=state)

    def after_step(self, *, step: Step, metrics: dict[str, Any], config: Any, state: dict[str, Any]) -> None:
        """Call ``posttrain_after_step`` if the method has it, to update the method's state."""
        if self.has("posttrain_after_step"):
            self._relay.hook.posttrain_after_step(step=step, metrics=metrics, config=config, state=state)

    def _usual(self) -> tuple[str, ...]:
        """Return the hooks that the core answers by default."""
        if not self.card.online:
            return ()
        loss = () if self.card.pairs else ("posttrain_loss",)
        return ("posttrain_token_statistics", *loss, *(("posttrain_advantages",) if self.card.modifier else ()))

    def _kinds(self) -> dict[str, Any]:
        try:
            return typing.get_type_hints(self.Config, globalns=vars(self.module))
        except NameError as error:
            raise PluginError(f"An option of '{self.name}' has a type that does not exist: {error}.") from error

    def _options(self) -> type:
        options, source = getattr(self.module, "Config", NoOptions), "Config"
        if self.has("posttrain_config"):
            deprecations.warn("posttrain_config")
            self.notes.append(f"Plugin '{self.name}': {deprecations.DEPRECATIONS['posttrain_config'].text}")
            options, source = self._relay.hook.posttrain_config(), "posttrain_config"
        if not (isinstance(options, type) and dataclasses.is_dataclass(options)):
            raise PluginError(f"{source} of '{self.name}' is {options!r}, expected a dataclass.")
        if not options.__dataclass_params__.frozen:  # type: ignore[attr-defined]  # typeshed lacks it
            raise PluginError(f"The options of '{self.name}' can be changed; write @dataclass(frozen=True).")
        return options


def load(name_or_folder: str) -> Method:
    """Load one method, by name or from a plugin's folder. Raises MethodError, PluginError or DependencyError."""
    row = locate(name_or_folder)
    assert row.card is not None  # locate() raises for a row without a card
    origin = row.distribution if row.folder is None else f"folder {row.folder}"
    own = row.card.tier == "stable"  # granted by discovery to the released files
    return from_module(import_plugin("method", row.name, row.module, origin, own, row.folder), row.card)


def from_module(module: ModuleType, card: Card) -> Method:
    """Wrap an imported module as the method of ``card``."""
    _check_hooks(module, card)
    relay = pluggy.PluginManager("posttrain")
    relay.add_hookspecs(hookspecs)
    try:
        relay.register(module, card.name)
        relay.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginError(f"Plugin '{card.name}' does not fit the hooks: {' '.join(str(error).split())}") from error
    return Method(card, module, relay)


def _check_hooks(module: ModuleType, card: Card) -> None:
    """Raise for misspelt hooks, missing marks and unknown arguments; pluggy itself accepts the first two."""
    plugin = card.name
    for name, function in vars(module).items():
        if not name.startswith("posttrain_") or not inspect.isfunction(function):
            continue
        if name not in HOOKS:
            raise PluginError(f"Plugin '{plugin}' implements unknown hook '{name}'.{closest(name, list(HOOKS))}")
        if not hasattr(function, "posttrain_impl"):
            raise PluginError(f"'{name}' of '{plugin}' is not marked as a hook. Write @posttrain.hookimpl above it.")
        if card.modifier and name not in MODIFIER_HOOKS:
            raise PluginError(f"Modifier '{plugin}' implements '{name}', which only the method itself can answer.")
        known = list(inspect.signature(HOOKS[name]).parameters)
        for argument, parameter in inspect.signature(function).parameters.items():
            if parameter.default is parameter.empty and argument not in known:
                raise PluginError(
                    f"'{name}' of '{plugin}' takes '{argument}', which that hook does not have."
                    f"{closest(argument, known)} Arguments: {', '.join(known) or 'none'}"
                )


def _unknown_option(key: str, names: list[str], method: str) -> str:
    return f"Unknown option '{key}' of method '{method}'.{closest(key, names)}  Its options: posttrain show {method}"
