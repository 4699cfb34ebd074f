"""Adapters through peft: created, loaded for further training, and disabled for the reference."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from posttrain.errors import ModelError, PosttrainError, first_line
from posttrain.example.example import MODELS as EXAMPLES
from posttrain.models.adapter_config import adapter_config
from posttrain.models.config_files import read_config
from posttrain.models.import_peft import import_peft
from posttrain.models.vocabulary import grow_to_adapter, tie_if_equal, untie

if TYPE_CHECKING:
    from posttrain.settings import ModelSettings

#: File that makes a folder an adapter's.
CONFIG = "adapter_config.json"
#: Name of the frozen copy of the adapter that a run started from.
REFERENCE_ADAPTER = "reference"
#: Name of an adapter that the policy learns from.
TEACHER_ADAPTER = "teacher"


def adapter_base(model: str) -> str | None:
    """Return the base model named by an adapter folder; None where ``model`` is not one."""
    if not _is_adapter(model):
        return None
    file = Path(model).expanduser() / CONFIG
    if (file.parent / "adapter_model.bin").is_file() and not (file.parent / "adapter_model.safetensors").is_file():
        raise ModelError(
            f"Adapter '{model}' has its weights in adapter_model.bin. Only safetensors weights are loaded; convert "
            "them with peft's save_pretrained."
        )
    base = first = _named_base(model)
    seen = {file.parent.resolve()}
    while _is_adapter(base):  # an adapter on an adapter
        folder = Path(base).expanduser().resolve()
        if folder in seen:
            raise ModelError(f"Adapter '{model}' is its own base, by base_model_name_or_path in {CONFIG}.")
        seen.add(folder)
        base = _named_base(base)
    return first


def _is_adapter(model: str) -> bool:
    return model not in EXAMPLES and (Path(model).expanduser() / CONFIG).is_file()


def _named_base(adapter: str) -> str:
    base = read_config(Path(adapter).expanduser(), CONFIG).get("base_model_name_or_path")
    if not base or not isinstance(base, str):
        raise ModelError(
            f"Adapter '{adapter}' does not name its base model. Expected base_model_name_or_path in {CONFIG}."
        )
    return base


@contextmanager
def base_of(model: str) -> Iterator[str]:
    """Yield the base of an adapter folder, else ``model``; a ModelError in the block says whose base is wrong."""
    base = adapter_base(model)
    try:
        yield base or model
    except ModelError as error:
        if base is None:
            raise
        raise ModelError(f"{error} The adapter '{model}' names '{base}' as its base.") from None


def add_adapter(module: Any, settings: ModelSettings, head: str, added: dict[str, list[int]] | None = None) -> Any:
    """Add a new adapter to ``module``: LoRA (or DoRA) on every linear layer except the head, or that of the settings.

    ``added`` are tokens by the name of the matrix whose rows for them are trained beside it.
    """
    config = adapter_config(module, settings, head, added or {})
    try:
        return import_peft().get_peft_model(module, config)
    except (ValueError, TypeError, AttributeError, NotImplementedError, KeyError) as error:
        raise ModelError(
            f"peft cannot put an adapter of the kind {config.peft_type.value} on {type(module).__name__}: "
            f"{first_line(error)}"
        ) from None


def load_adapter(module: Any, folder: str) -> Any:
    """Load a trained adapter for further training, and a frozen copy of it as the reference (R1)."""
    model = attach(module, folder, is_trainable=True)
    model.load_adapter(folder, adapter_name=REFERENCE_ADAPTER, is_trainable=False)
    model.set_adapter("default")
    return model


#: Whether a model classifies -> what it ends in.
_ENDS = {False: "the vocabulary", True: "scores"}


def check_handed_over(module: Any, head: str) -> None:
    """Raise ModelError for a model from a program that ends in another head, or whose adapter is not "default"."""
    inner = module.get_base_model() if hasattr(module, "peft_config") else module
    classifies = hasattr(inner, "score") or hasattr(inner, "classifier")
    if (head == "vocabulary") == classifies:
        wanted = {"score": "SequenceClassification (num_labels=1)", "steps": "TokenClassification (num_labels=2)"}
        raise ModelError(
            f"The model handed over is a {type(inner).__name__}, which ends in {_ENDS[classifies]}; this method needs "
            f"{_ENDS[head != 'vocabulary']}. Load it with AutoModelFor{wanted.get(head, 'CausalLM')}, or hand over its "
            "name."
        )
    active = getattr(module, "active_adapters", None) if hasattr(module, "peft_config") else None
    active = active() if callable(active) else active
    if active is not None and list(active) != ["default"]:
        raise ModelError(
            f"The active adapters of the model are {', '.join(active) or 'none'}. Expected one that is called "
            "'default', as peft calls it where no name is given: leave adapter_name out, or call "
            'model.set_adapter("default").'
        )


def keep_start(model: Any) -> None:
    """Keep a frozen copy of the policy's adapter as the reference, unless disabling adapters gives the same model.

    An adapter from a program, or one that does not start as its base (PiSSA, prompts), already changes the model.
    """
    import copy

    if REFERENCE_ADAPTER in model.peft_config or _changes_nothing(model):
        return
    peft = import_peft()
    state = peft.get_peft_model_state_dict(model, adapter_name="default", save_embedding_layers=False)
    config = copy.deepcopy(model.peft_config["default"])
    if getattr(config, "init_lora_weights", True) not in (True, False):
        config.init_lora_weights = True  # other initialisations change the base, which has already happened
    model.add_adapter(REFERENCE_ADAPTER, config)
    peft.set_peft_model_state_dict(model, {n: v.clone() for n, v in state.items()}, adapter_name=REFERENCE_ADAPTER)
    model.set_adapter("default")


def _changes_nothing(model: Any) -> bool:
    """Return whether disabled adapters give the same model: a LoRA with zero second factors, unchanged copies."""
    config = model.peft_config["default"]
    if config.peft_type.value != "LORA" or config.init_lora_weights not in (True, "gaussian", "orthogonal", "eva"):
        return False
    zeros = (".lora_B.default", ".lora_embedding_A.default")
    if any(bool(p.any()) for n, p in model.named_parameters() if any(zero in n for zero in zeros)):
        return False
    return all(_is_as_its_original(module) for module in model.modules())


def _is_as_its_original(module: Any) -> bool:
    """Return whether a trained copy of a module, or of some embedding rows, still equals its original."""
    if hasattr(module, "original_module") and "default" in getattr(module, "modules_to_save", ()):
        own, original = module.modules_to_save["default"].state_dict(), module.original_module.state_dict()
        return all(own[name].equal(original[name]) for name in original)
    if "default" in getattr(module, "trainable_tokens_delta", ()):
        rows = module.get_base_layer().weight[module.token_indices["default"]]
        return bool((module.trainable_tokens_delta["default"] == rows).all())
    return True


def merged(module: Any, folder: str) -> Any:
    """Merge the adapter in ``folder`` into a base; input and output embeddings that then differ are untied."""
    model = attach(module, folder)
    inner = model.get_base_model()
    was_tied = untie(inner)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*tie", category=UserWarning)  # untied above
            whole = model.merge_and_unload()
    except (AttributeError, NotImplementedError, ValueError, TypeError) as error:
        kind = model.peft_config["default"].peft_type.value
        raise ModelError(
            f"Adapter '{folder}' is of the kind {kind}, which cannot be put into the weights of its base: "
            f"{first_line(error)}"
        ) from None
    if was_tied:
        tie_if_equal(whole)
    return whole


def attach(module: Any, folder: str, name: str = "default", is_trainable: bool = False) -> Any:
    """Load the adapter in ``folder`` around ``module``, or beside the adapters that it has.

    Raises ModelError for a folder without weights, or with weights that do not fit, which peft would replace by random
    ones.
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
            grow_to_adapter(module, file.parent)
            model = import_peft().PeftModel.from_pretrained(
                module, folder, adapter_name=name, is_trainable=is_trainable
            )
    except (PosttrainError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # peft raises anything for values that it does not expect
        of_weights = isinstance(error, SafetensorError | OSError | RuntimeError | KeyError)
        source = file.name if of_weights else "adapter_config.json"
        text = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        reasons = [line.strip() for line in text.splitlines() if line.strip()]
        mismatch = [line for line in reasons if line.startswith("size mismatch")]  # the first line names no weight
        first = (mismatch or reasons or [type(error).__name__])[0]
        raise ModelError(f"Adapter '{folder}' cannot be loaded from {source}: {first}") from None
    wanted = set(import_peft().get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False))
    beside = (".modules_to_save", ".original_module")  # peft writes resized embeddings a second time under these
    known = wanted | set(model.state_dict()) | {n for n in found for b in beside if n.replace(b, "") in wanted}
    lost, unknown = sorted(wanted - found), sorted(found - known)
    if lost or unknown:
        raise ModelError(
            f"Adapter '{folder}' does not fit {type(model.get_base_model()).__name__}: {file.name} lacks {len(lost)} "
            f"of its weights and holds {len(unknown)} that belong nowhere, first '{(lost + unknown)[0]}'. Expected an "
            "adapter that was trained on this base model."
        )
    return model
