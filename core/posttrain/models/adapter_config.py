"""Configuration of the adapter that a run trains: LoRA from its options, or any configuration of peft."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.errors import ModelError, SettingsError, closest, first_line, short
from posttrain.models.import_peft import import_peft
from posttrain.models.reach import frozen_vision

if TYPE_CHECKING:
    from posttrain.settings import ModelSettings

#: Kind of head -> peft's task type.
TASKS = {"vocabulary": "CAUSAL_LM", "score": "SEQ_CLS", "steps": "TOKEN_CLS"}


def adapter_config(module: Any, settings: ModelSettings, head: str, added: dict[str, list[int]]) -> Any:
    """Build the peft configuration of a new adapter on ``module``.

    ``added`` are tokens by the name of the matrix (embedding, projection) whose rows for them are trained. Raises
    SettingsError or ModelError for what ``module`` or peft does not have.
    """
    peft = import_peft()
    heads = [] if head == "vocabulary" else ["score" if hasattr(module, "score") else "classifier"]
    saved = [*(settings.lora_modules_to_save or []), *heads]
    known = {name.rpartition(".")[2] for name, _ in module.named_modules()}
    for option, names in (
        ("lora-targets", settings.lora_targets),
        ("lora-modules-to-save", settings.lora_modules_to_save),
    ):
        missing = [t for t in names or () if t.rpartition(".")[2] not in known]
        if missing:
            shown = (n for n in known if n.endswith(("proj", "head", "tokens")) or n.startswith("fc"))
            raise ModelError(
                f"{option} names '{missing[0]}', which {type(module).__name__} does not have. "
                f"It has: {', '.join(sorted(shown))}."
            )
    if settings.adapter_config is None:
        return peft.LoraConfig(
            r=settings.lora_rank,
            lora_alpha=2 * settings.lora_rank if settings.lora_alpha is None else settings.lora_alpha,  # type: ignore[arg-type]  # peft takes fractions, its annotation does not
            lora_dropout=settings.lora_dropout,
            target_modules=settings.lora_targets or "all-linear",
            target_parameters=_parameters(module, settings),
            use_dora=settings.dora,
            exclude_modules=None if settings.lora_targets else (_left_out(module, settings) or None),
            modules_to_save=saved or None,
            trainable_token_indices=added or None,
            task_type=TASKS[head],
        )
    config = read_adapter_config(settings.adapter_config)
    if config.is_prompt_learning:
        raise SettingsError(
            f"An adapter of the kind {config.peft_type.value} puts tokens before every row, and rows are laid behind "
            "each other here. Use one that lies over the weights: LORA, IA3, VERA, OFT, ..."
        )
    config.task_type = TASKS[head]
    _add_to(config, saved, added)
    if getattr(config, "target_modules", "none given") is None and not getattr(config, "target_parameters", None):
        config.target_modules = "all-linear"
    return config


def _add_to(config: Any, saved: list[str], added: dict[str, list[int]]) -> None:
    """Add the modules and token rows that the run trains beside the adapter to a configuration from a file."""
    kind = config.peft_type.value
    if saved and not hasattr(config, "modules_to_save"):
        raise SettingsError(
            f"An adapter of the kind {kind} trains no modules beside itself, and '{saved[0]}' must be trained. Use "
            "another kind."
        )
    if saved:
        config.modules_to_save = list(dict.fromkeys([*(config.modules_to_save or []), *saved]))
    if added and not hasattr(config, "trainable_token_indices"):
        raise SettingsError(
            f"An adapter of the kind {kind} trains no single rows of an embedding, which --add-tokens needs. Use LoRA, "
            "or train the whole matrices: --lora-modules-to-save " + ",".join(added)
        )
    if added:
        config.trainable_token_indices = added


def read_adapter_config(text: str) -> Any:
    """Read a peft configuration from a JSON or YAML file, or from JSON text. Raises SettingsError."""
    peft = import_peft()
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    values = values_of(text)
    known = {kind.value.upper(): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    named = str(values.pop("peft_type", "")).rpartition(".")[2].upper()
    if named not in known:
        hint = closest(named, known)
        raise SettingsError(
            f"adapter-config: peft_type is {short(named)}, which peft {peft.__version__} does not know.{hint} Known: "
            f"{', '.join(sorted(known))}."
        )
    kind: Any = known[named]
    fields = {field.name for field in dataclasses.fields(kind) if field.init}
    unknown = [key for key in values if key not in fields and key not in ("auto_mapping", "peft_version")]
    if unknown:
        hint = closest(unknown[0], fields)
        raise SettingsError(f"adapter-config: {named} has no field '{unknown[0]}'.{hint}")
    ours = ("inference_mode", "task_type")
    chosen = {key: value for key, value in values.items() if key in fields and key not in ours}
    try:
        return kind(task_type="CAUSAL_LM", inference_mode=False, **chosen)
    except (ValueError, TypeError) as error:
        raise SettingsError(f"adapter-config: peft refuses it: {first_line(error)}") from None


def values_of(text: str) -> dict[str, Any]:
    """Parse the fields of such a file or text. Raises SettingsError."""
    import yaml

    where = "adapter-config"
    if not text.lstrip().startswith("{"):
        where = f"adapter-config '{text}'"
        try:
            text = Path(text).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error.reason
            raise SettingsError(f"{where} cannot be read: {reason}.") from None
    try:
        values = yaml.safe_load(text)  # reads JSON too
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise SettingsError(f"{where} is neither JSON nor YAML: {' '.join(str(error).split())[:200]}.") from None
    if not isinstance(values, dict):
        raise SettingsError(f"{where} holds {short(values)}, expected fields such as peft_type: LORA.")
    return values


def as_text(adapter: Any) -> str:
    """Return an adapter from a program (a peft configuration, fields, a file name) as text for the option."""
    if isinstance(adapter, str | Path):
        return str(adapter)
    values = adapter if isinstance(adapter, dict) else adapter.to_dict()
    plain = {k: sorted(v) if isinstance(v, set) else v for k, v in values.items() if v is not None}
    return json.dumps(plain, default=lambda value: getattr(value, "value", str(value)))


def _left_out(module: Any, settings: ModelSettings) -> list[str]:
    """List layers without an adapter by default: a frozen vision tower's, and output projections of Mamba's mixers.

    On a GPU the kernels of the latter multiply with the weight itself, past any adapter, and peft refuses most of them.
    """
    parts = ("A_log", "D", "conv1d", "out_proj")
    mixers = [name for name, one in module.named_modules() if all(hasattr(one, part) for part in parts)]
    return [*frozen_vision(module, settings), *(f"{name}.out_proj" for name in mixers)]


def _parameters(module: Any, settings: ModelSettings) -> list[str] | None:
    """Return the names of stacked matrices, such as experts, that get an adapter."""
    names = settings.lora_target_parameters
    for name in names or ():
        if not any(key.endswith(name) for key, _ in module.named_parameters()):
            stacked = sorted({".".join(key.split(".")[-2:]) for key, p in module.named_parameters() if p.ndim == 3})
            raise ModelError(
                f"lora-target-parameters names '{name}', which {type(module).__name__} does not have. "
                f"It has: {', '.join(stacked) or 'no stacked matrices'}."
            )
    return names
