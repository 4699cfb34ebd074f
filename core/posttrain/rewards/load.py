"""Loading of rewards: installed names, functions in files, folders of reward models, callables."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import math
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from posttrain.catalogue.entries import entries, load_entry, one
from posttrain.errors import PosttrainError, RewardError, SettingsError, closest
from posttrain.rewards.blame import reason
from posttrain.rewards.guard import LIMIT, Broken, guarded
from posttrain.rewards.own_process import OwnProcess
from posttrain.rewards.process import EVERYBODY
from posttrain.rewards.reward import STANDARD, Reward, is_async
from posttrain.settings.secret_options import revealed

_FORMS = "Give an installed name, file.py:function, the folder of a reward model, or a reward worker's address"


def load_rewards(
    specs: list[str | Callable[..., Any]] | None,
    options: dict[str, Any] | None = None,
    tokenizer: Any = None,
    model_loader: Callable[[Path], Callable[..., Any]] | None = None,
    limit: float | None = LIMIT,
    apart: bool = False,
) -> list[Reward]:
    """Load exactly the rewards named by ``specs``, in their order.

    A spec is a callable or ``NAME``, ``FILE.py:FUNCTION``, ``FOLDER``, ``http://HOST:PORT``, each with an optional
    ``=WEIGHT``. ``options`` are ``{"NAME.OPTION": value}``; texts are converted to the type of the parameter, and
    ``env:VARIABLE`` of an option named like a secret to the environment's value. A function with a parameter
    ``tokenizer`` gets the run's. ``model_loader`` makes the function for a reward model's folder
    [``posttrain.rewards.model.reward_model``]; ``limit`` are the seconds for a call, None for no limit. ``apart``:
    functions by name or file run in separate processes. Raises RewardError and SettingsError.
    """
    found = [_find(spec, model_loader, apart) for spec in specs or []]
    names = _unique([name for name, _, _ in found], [isinstance(spec, str) for spec in specs or []])
    bound = _options_by_reward(revealed("reward_options", options or {}), names)
    rewards = []
    for name, (_, weight, function) in zip(names, found, strict=True):
        if isinstance(function, OwnProcess):
            function.begin(name, bound[name], limit)
            rewards.append(Reward(name, weight, function, True, None))
            continue
        arguments = _arguments(name, function, bound[name])
        if tokenizer is not None and "tokenizer" in inspect.signature(function).parameters:
            arguments.setdefault("tokenizer", tokenizer)
        function = functools.partial(function, **arguments) if arguments else function
        rewards.append(Reward(name, weight, function, is_async(function), _limit(function, limit)))
    return rewards


def _limit(function: Callable[..., Any], limit: float | None) -> float | None:
    """Return ``limit``, except for reward workers: a run retries them for longer, and each has a limit of its own."""
    from posttrain.rewards.worker import RemoteReward

    return None if isinstance(function, RemoteReward) else limit


def installed_rewards() -> list[str]:
    """Return the names of all installed rewards, sorted, without importing any."""
    return sorted({entry.name for entry in entries("reward")})


def _find(spec: str | Callable[..., Any], model_loader: Any, apart: bool) -> tuple[str, float, Callable[..., Any]]:
    """Return name, weight and function of one spec."""
    if not isinstance(spec, str) and apart:
        raise SettingsError(
            f"reward-process is on, and reward {spec!r} is a function of this process. Name it by its file "
            "(file.py:function) or its installed name, or leave out reward-process."
        )
    if not isinstance(spec, str):
        if not callable(spec):
            raise RewardError(f"reward {spec!r} ({type(spec).__name__}) is neither a function nor a name. {_FORMS}.")
        return str(getattr(spec, "__name__", type(spec).__name__)), 1.0, spec
    place, weight = _weight(spec)
    if place.startswith(("http://", "https://")):
        from posttrain.rewards.worker import RemoteReward

        return "worker", weight, RemoteReward(place)
    file, colon, function = place.rpartition(":")
    if colon and file.endswith(".py"):
        return function, weight, OwnProcess(place, function) if apart else _from_file(Path(file), function)
    if place not in installed_rewards() and Path(place).is_dir():
        if model_loader is None:
            from posttrain.rewards.model import reward_model as model_loader
        return Path(place).resolve().name, weight, model_loader(Path(place))
    return place, weight, OwnProcess(place, place) if apart else _installed(place)


def function_in_file(spec: str, what: str) -> Callable[..., Any]:
    """Load the function or class of ``FILE.py:NAME``. Raises RewardError or SettingsError."""
    file, colon, name = spec.rpartition(":")
    if not colon or not file.endswith(".py"):
        raise SettingsError(f"{what} '{spec}' is not of the form FILE.py:NAME.")
    return _from_file(Path(file), name, what)


def convert_options(name: str, function: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any]:
    """Convert options of the environment ``name`` to its parameters' types. Raises SettingsError for one it lacks."""
    return _arguments(name, function, given, "environment", ())


def _weight(spec: str) -> tuple[str, float]:
    place, equals, text = spec.rpartition("=")
    if not equals or Path(spec).exists():
        return spec, 1.0
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise SettingsError(f"reward '{spec}': the weight '{text}' is not a number. Write it like {place}=0.5.")
    return place, weight


def _from_file(path: Path, name: str, what: str = "reward") -> Callable[..., Any]:
    if not path.is_file():
        raise RewardError(f"{what} '{path}:{name}': there is no file '{path}'. Give its path from the current folder.")
    spec = importlib.util.spec_from_file_location(f"posttrain_reward_file_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise RewardError(f"{what} '{path}:{name}': '{path}' cannot be read as Python. Name a file that ends in .py.")
    module = importlib.util.module_from_spec(spec)
    try:
        guarded(lambda: spec.loader.exec_module(module), f"The import of '{path}'", own=EVERYBODY)  # type: ignore[union-attr]
    except Broken as found:
        raise RewardError(f"{what} file '{path}' cannot be imported: {reason(found.error)}") from found.error
    functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    function = vars(module).get(name)
    if not callable(function):
        raise RewardError(
            f"{what} file '{path}' has no function '{name}'.{closest(name, functions)} "
            f"It has: {', '.join(functions) or 'none'}."
        )
    return function


def _installed(name: str) -> Callable[..., Any]:
    entry = one("reward", name)
    if entry is None:
        names = installed_rewards()
        raise RewardError(
            f"No reward is called '{name}'.{closest(name, names)} Installed: {', '.join(names) or 'none'}. {_FORMS}."
        )
    try:
        function = guarded(functools.partial(load_entry, entry), f"The import of reward '{name}'", own=EVERYBODY)
    except Broken as found:
        if isinstance(found.error, PosttrainError):  # it is not allowed, missing or broken, and says so
            raise found.error from None
        raise RewardError(f"Reward '{name}' ({entry.value}) cannot be loaded: {reason(found.error)}") from found.error
    if not callable(function):
        raise RewardError(f"Reward '{name}' ({entry.value}) is {function!r}, expected a function.")
    return function


def _unique(names: list[str], by_name: list[bool]) -> list[str]:
    """Refuse a reward that is named twice; number functions that have the same name."""
    result: list[str] = []
    for name, named in zip(names, by_name, strict=True):
        if name in result and named:
            raise SettingsError(f"reward '{name}' is given twice. Give it once, with the sum of the weights.")
        number = 2
        unique = name
        while unique in result:
            unique, number = f"{name}-{number}", number + 1
        result.append(unique)
    return result


def _options_by_reward(options: dict[str, Any], names: list[str]) -> dict[str, dict[str, Any]]:
    """Group ``{"regex.pattern": "x"}`` as ``{"regex": {"pattern": "x"}}``, an entry for every reward."""
    bound: dict[str, dict[str, Any]] = {name: {} for name in names}
    for key, value in options.items():
        name, dot, option = str(key).rpartition(".")
        if not dot or not option:
            raise SettingsError(f"reward option '{key}' is not of the form REWARD.OPTION, like regex.pattern.")
        if name not in bound:
            raise SettingsError(
                f"reward option '{key}': no reward '{name}' is used.{closest(name, names)} "
                f"Rewards of this run: {', '.join(names) or 'none'}."
            )
        bound[name][option] = value
    return bound


def _arguments(
    name: str,
    function: Callable[..., Any],
    given: dict[str, Any],
    what: str = "reward",
    standard: tuple[str, ...] = STANDARD,
) -> dict[str, Any]:
    """Check ``given`` against the function's parameters and convert texts to their types."""
    signature = inspect.signature(function)
    takes = [
        parameter.name
        for parameter in signature.parameters.values()
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and parameter.name not in standard
    ]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    hints = _hints(function)
    result = {}
    for option, value in given.items():
        if option in standard or (option not in takes and not open_ended):
            raise SettingsError(
                f"{what.capitalize()} '{name}' has no option '{option}'.{closest(option, takes)} "
                f"It has: {', '.join(takes) or 'none'}."
            )
        result[option] = _convert(f"{what} option '{name}.{option}'", value, hints.get(option))
    return result


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    target = function if inspect.isroutine(function) else type(function).__call__
    try:
        return typing.get_type_hints(target)
    except (NameError, TypeError):  # annotations that exist only for type checkers: no conversion then
        return {}


def _convert(option: str, value: Any, hint: Any) -> Any:
    """Convert the text of ``option`` to the annotated type: int, float, bool, or one of these or None."""
    if not isinstance(value, str):
        return value
    kinds = (
        typing.get_args(hint)
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        else (hint,)
    )
    if value.lower() == "none" and type(None) in kinds:
        return None
    if bool in kinds and value.lower() in ("true", "false"):
        return value.lower() == "true"
    for kind in (int, float):
        if kind in kinds:
            try:
                return kind(value)
            except ValueError:
                continue
    if not {bool, int, float} & set(kinds) or str in kinds:
        return value
    expected = " or ".join(kind.__name__ for kind in kinds if kind is not type(None))
    raise SettingsError(f"{option} is '{value}', expected {expected}.")
