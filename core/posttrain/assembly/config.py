"""Resolution of defaults, the method's card, a file and flags to one set of options, each checked.

Order: defaults of the dataclasses, the card's ``[defaults]``, those of the example model, the file, the flags; later
ones win.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from posttrain.catalogue.cards import Card
from posttrain.catalogue.defaults import shared_options, unknown
from posttrain.errors import CardError, SettingsError
from posttrain.example.example import example_defaults
from posttrain.settings import SECTIONS, ModelSettings, OptimSettings, Settings, names_of
from posttrain.settings.options import Option, cast
from posttrain.settings.secret_options import hidden
from posttrain.settings.values import refuse_empty

#: Learning rates of adapters are this multiple of those of full weights (Thinking Machines, "LoRA without regret").
LORA_LEARNING_RATE = 10
#: Deepest nesting of a configuration file.
_DEEPEST = 50
_DASHES = re.compile(r"\s*(?:[-?]\s+)*")
#: List options whose items never contain a comma, so that one flag can name several.
_COMMA_LISTS = (
    *("lora_targets", "lora_target_parameters", "lora_modules_to_save", "add_tokens"),
    *("train_only", "freeze", "observers", "track"),
)
#: Other names of options in files and programs.
_ALIASES = {"modifiers": "modifier"}


def read_file(path: str | Path) -> dict[str, Any]:
    """Read the keys of a YAML or TOML file. Raises SettingsError if it cannot be read or is not a table of keys."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error.reason
        raise SettingsError(f"Configuration file '{path}' cannot be read: {reason}.") from None
    if path.suffix == ".toml":
        try:
            return tomllib.loads(text)
        except (ValueError, RecursionError) as error:
            reason = "it is nested too deeply" if isinstance(error, RecursionError) else f"{error!s:.200}"
            raise SettingsError(f"{path}: is not valid TOML: {reason}.") from None
    if path.suffix not in (".yaml", ".yml"):
        raise SettingsError(f"Configuration file '{path}' ends in '{path.suffix}', expected .yaml, .yml or .toml.")
    return _yaml(text, path)


def _yaml(text: str, path: Path) -> dict[str, Any]:
    import yaml

    # The parser takes time quadratic in the depth, and then overflows the stack.
    line = _too_deep(text)
    if line is not None:
        raise SettingsError(f"{path} line {line}: is nested more than {_DEEPEST} deep, expected keys and values.")
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: is not valid YAML: {' '.join(str(error).split())[:400]}.") from None
    except (RecursionError, ValueError, TypeError, OverflowError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else f"{error!s:.200}"
        raise SettingsError(f"{path}: cannot be read: {' '.join(reason.split())}.") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError(f"{path}: holds {type(values).__name__}, expected keys and values such as 'steps: 100'.")
    return {str(key): value for key, value in values.items()}


def _too_deep(text: str) -> int | None:
    """Return the first line with more open brackets or dashes than any configuration has."""
    depth = 0
    for number, line in enumerate(text.splitlines(), 1):
        dashes = _DASHES.match(line)
        for character in line:
            if character in "[{":
                depth += 1
            elif character in "]}":
                depth = max(0, depth - 1)
            if depth > _DEEPEST:
                return number
        if dashes and len(dashes[0].split()) > _DEEPEST:
            return number
    return None


def resolve(
    card: Card, options: list[Option], file: dict[str, Any], flags: dict[str, Any], file_name: str = "configuration"
) -> tuple[Settings, dict[str, Any]]:
    """Resolve the settings of a run and the method's own options from ``file`` and ``flags`` (keys in snake_case).

    The second has given options alone; the rest are the defaults of ``Config``. Raises SettingsError.
    """
    kinds = {option.name: option.kind for option in (*shared_options(), *options)}
    defaults = _card_defaults(card, kinds)
    given: dict[str, Any] = {}
    for where, values in ((f"{file_name}: ", _ungrouped(file, file_name)), ("", flags)):
        for key, value in values.items():
            if where and key == "method":
                continue
            key = key if key in kinds else _ALIASES.get(key, key)
            if key not in kinds:
                raise SettingsError(f"{where}{unknown(key, kinds)}  All options: posttrain show {card.name}")
            given[key] = _checked(where, key, value, kinds[key])
            if key == "output":  # later an empty one means the default
                refuse_empty(f"{where}output", given[key])
    own = {key: given.pop(key) for key in [option.name for option in options] if key in given}
    example = example_defaults(card, defaults | given)
    settings = Settings(**(defaults | example | given))
    if settings.distributed.strategy == "qlora" and settings.model.quantize is None:
        settings = settings.replace(quantize="nf4")
    return settings.replace(**_adapter_options(settings.model, settings.optim, given)), own


def _ungrouped(file: dict[str, Any], file_name: str) -> dict[str, Any]:
    """Flatten tables named after a section (``data: {max_length: 512}``). Raises SettingsError for a foreign key."""
    flat: dict[str, Any] = {}
    for key, value in file.items():
        grouped = key in SECTIONS and isinstance(value, dict)
        for name, item in value.items() if grouped else [(key, value)]:
            if grouped and name not in names_of(key):
                raise SettingsError(f"{file_name}: section '{key}': {unknown(str(name), names_of(key))}")
            if name in flat:
                raise SettingsError(f"{file_name}: option '{name}' is given twice. Leave one of them out.")
            flat[name] = item
    return flat


def _checked(where: str, key: str, value: Any, kind: Any) -> Any:
    if key in _COMMA_LISTS and isinstance(value, str | list):
        value = [item for text in ([value] if isinstance(value, str) else value) for item in str(text).split(",")]
    try:
        return cast(key, value, kind)
    except SettingsError as error:
        raise SettingsError(f"{where}{error}") from None


def _card_defaults(card: Card, kinds: dict[str, Any]) -> dict[str, Any]:
    shared = [option.name for option in shared_options()]
    for key in card.defaults:
        if key not in shared:
            raise CardError(f"{card.path}: [defaults] {unknown(key, shared)}")
    return {key: _checked(f"{card.path}: [defaults] ", key, value, kinds[key]) for key, value in card.defaults.items()}


def _adapter_options(model: ModelSettings, optim: OptimSettings, given: dict[str, Any]) -> dict[str, Any]:
    """Return the options that follow from training an adapter: ``lora``, and the learning rate where none was given."""
    implied = next((name for name in ("quantize", "dora", "adapter_config") if getattr(model, name)), None)
    if implied and given.get("lora") is False:
        raise SettingsError(f"Option '{implied}' trains an adapter, but lora is false. Leave one of them out.")
    changes: dict[str, Any] = {"lora": model.lora or implied is not None}
    if changes["lora"] and given.get("learning_rate") is None:
        changes["learning_rate"] = optim.learning_rate * LORA_LEARNING_RATE
    return changes


def as_yaml(method: str, settings: dict[str, Any], options: dict[str, Any], own: list[Option]) -> str:
    """Write the resolved configuration in the form that ``--config`` takes. Options that are None are left out."""
    import yaml

    values: dict[str, Any] = {"method": method}
    values |= {key: value for key, value in hidden(settings).items() if value not in (None, "")}
    values |= {option.name: options.get(option.name, option.default) for option in own}
    return yaml.safe_dump({k: v for k, v in values.items() if v is not None}, sort_keys=False, allow_unicode=True)
