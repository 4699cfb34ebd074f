"""Adapters through peft: made new, loaded to be trained on, and switched off for the reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.errors import ModelError
from posttrain.example.example import MODELS as EXAMPLES

if TYPE_CHECKING:
    from posttrain.settings import ModelSettings

#: Name of the frozen copy of an adapter that a run started from.
REFERENCE_ADAPTER = "reference"
#: Name of an adapter that the policy learns from.
TEACHER_ADAPTER = "teacher"


def _peft() -> Any:
    """peft, imported when an adapter is wanted: it takes seconds where bitsandbytes is installed."""
    import peft

    return peft


def adapter_base(model: str) -> str | None:
    """The base model named by an adapter folder; None where ``model`` is not one."""
    file = Path(model).expanduser() / "adapter_config.json"
    if model in EXAMPLES or not file.is_file():
        return None
    if (file.parent / "adapter_model.bin").is_file() and not (file.parent / "adapter_model.safetensors").is_file():
        raise ModelError(
            f"Adapter '{model}' has its weights in adapter_model.bin. Only safetensors weights are loaded; convert "
            "them with peft's save_pretrained."
        )
    base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise ModelError(
            f"Adapter '{model}' does not name its base model. Expected base_model_name_or_path in {file.name}."
        )
    return str(base)


def add_adapter(module: Any, settings: ModelSettings, head: str) -> Any:
    """A new LoRA (or DoRA) adapter on every linear layer but the head, or on the named modules."""
    if settings.lora_targets:
        known = {name.rpartition(".")[2] for name, _ in module.named_modules()}
        missing = [t for t in settings.lora_targets if t.rpartition(".")[2] not in known]
        if missing:
            raise ModelError(
                f"lora-targets names '{missing[0]}', which {type(module).__name__} does not have. "
                f"It has: {', '.join(sorted(n for n in known if n.endswith('proj') or n.startswith('fc')))}."
            )
    peft = _peft()
    config = peft.LoraConfig(
        r=settings.lora_rank,
        lora_alpha=2 * settings.lora_rank if settings.lora_alpha is None else settings.lora_alpha,  # type: ignore[arg-type]  # peft takes fractions, its annotation does not
        lora_dropout=settings.lora_dropout,
        target_modules=settings.lora_targets or "all-linear",
        use_dora=settings.dora,
        modules_to_save=None if head == "vocabulary" else ["score" if hasattr(module, "score") else "classifier"],
        task_type={"vocabulary": "CAUSAL_LM", "score": "SEQ_CLS", "steps": "TOKEN_CLS"}[head],
    )
    return peft.get_peft_model(module, config)


def load_adapter(module: Any, folder: str) -> Any:
    """A trained adapter to go on with, and a frozen copy of it to serve as the reference (R1)."""
    model = attach(module, folder, is_trainable=True)
    model.load_adapter(folder, adapter_name=REFERENCE_ADAPTER, is_trainable=False)
    model.set_adapter("default")
    return model


def merged(module: Any, folder: str) -> Any:
    """A base with the adapter in ``folder`` put into its weights."""
    return attach(module, folder).merge_and_unload()


def attach(module: Any, folder: str, name: str = "default", is_trainable: bool = False) -> Any:
    """Put the adapter in ``folder`` around ``module``, or beside the adapters that it has.

    Raises ModelError for a folder without weights, or with weights that do not fit: peft would go on with random ones.
    """
    from safetensors import SafetensorError, safe_open

    file = Path(folder).expanduser() / "adapter_model.safetensors"
    if not file.is_file():
        raise ModelError(
            f"Adapter '{folder}' has no {file.name}. Expected a folder with the weights that peft's save_pretrained "
            "writes beside adapter_config.json."
        )
    try:
        with safe_open(file, "pt") as stored:
            found = set(stored.keys())
        if hasattr(module, "peft_config"):
            module.load_adapter(folder, adapter_name=name, is_trainable=is_trainable)
            model = module
        else:
            model = _peft().PeftModel.from_pretrained(module, folder, adapter_name=name, is_trainable=is_trainable)
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        text = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        reasons = [line.strip() for line in text.splitlines() if line.strip()]
        mismatch = [line for line in reasons if line.startswith("size mismatch")]  # the first line names no weight
        first = (mismatch or reasons or [type(error).__name__])[0]
        raise ModelError(f"Adapter '{folder}' cannot be loaded from {file.name}: {first}") from None
    wanted = set(_peft().get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False))
    lost, unknown = sorted(wanted - found), sorted(found - wanted - set(model.state_dict()))
    if lost or unknown:
        raise ModelError(
            f"Adapter '{folder}' does not fit {type(model.get_base_model()).__name__}: {file.name} lacks {len(lost)} "
            f"of its weights and holds {len(unknown)} that belong nowhere, first '{(lost + unknown)[0]}'. Expected an "
            "adapter that was trained on this base model."
        )
    return model
