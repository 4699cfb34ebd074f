"""Trained weights of a model: patterns that select them, and the trained share of each kind of weight."""

from __future__ import annotations

import fnmatch
import re
from typing import TYPE_CHECKING, Any

from posttrain.errors import SettingsError
from posttrain.models.processor import reads_images
from posttrain.network.images import language_part

if TYPE_CHECKING:
    from posttrain.settings import ModelSettings

#: Part of the name of a projector of images into the language model.
_PROJECTOR = re.compile(r"(projector|connector|merger|aligner|embed_vision|modality_projection)")
#: Kind of weight -> part of a parameter's name, tried in this order.
_KINDS = (
    ("router", re.compile(r"(router|\.gate\.(weight|wg)|\.gate\.e_score)")),
    ("experts", re.compile(r"expert")),
    ("norms", re.compile(r"(norm|\bln_|layernorm)", re.IGNORECASE)),
    ("attention", re.compile(r"(attn|attention|[qkvo]_proj|query|key|value|mixer|mamba|linear_attn)", re.IGNORECASE)),
    ("MLP", re.compile(r"(mlp|ffn|feed_forward|fc\d|up_proj|down_proj|gate_proj)", re.IGNORECASE)),
)


def choose_trained(inner: Any, settings: ModelSettings) -> None:
    """Train only those weights that ``train_only`` names and ``freeze`` does not.

    A pattern is a part of a weight's name; ``*`` matches anything. Raises SettingsError for one without a match.
    """
    names = [name for name, _ in inner.named_parameters()]
    for option, patterns in (("train-only", settings.train_only), ("freeze", settings.freeze)):
        for pattern in patterns or ():
            if not any(_matches(name, pattern) for name in names):
                tied = " Its head shares the embedding's matrix." if inner.config.tie_word_embeddings else ""
                raise SettingsError(
                    f"{option} '{pattern}' is no part of a weight's name.{tied} Names look like '{names[0]}', "
                    f"'{names[len(names) // 2]}'."
                )
    for name, parameter in inner.named_parameters():
        only = settings.train_only is None or any(_matches(name, pattern) for pattern in settings.train_only)
        frozen = any(_matches(name, pattern) for pattern in settings.freeze or ())
        parameter.requires_grad_(bool(parameter.requires_grad and only and not frozen))


def freeze_vision(inner: Any, settings: ModelSettings) -> bool:
    """Freeze the parts of a vision-language model that ``train_vision`` excludes; return False for a text model.

    ``train_only`` or ``freeze``, where given, decide alone; an adapter freezes everything, and ``frozen_vision`` says
    which layers get none.
    """
    if not reads_images(inner.config):
        return False
    if not (settings.train_only or settings.freeze):
        for name, parameter in _vision(inner):
            wanted = settings.train_vision == "all" or (settings.train_vision == "projector" and _is_projector(name))
            parameter.requires_grad_(bool(parameter.requires_grad and wanted))
    return True


def frozen_vision(inner: Any, settings: ModelSettings) -> list[str]:
    """Return the names of linear layers outside of the language model that get no adapter."""
    if not reads_images(inner.config) or settings.train_vision == "all":
        return []
    names = {name.rpartition(".")[0] for name, parameter in _vision(inner) if parameter.ndim >= 2}
    return sorted(n for n in names if settings.train_vision == "none" or not _is_projector(n))


def _vision(inner: Any) -> list[tuple[str, Any]]:
    """Return names and weights outside of the language model and its head."""
    prefix = inner.base_model_prefix
    decoder = getattr(inner, prefix)
    language = {id(parameter) for parameter in language_part(decoder).parameters()}
    return [(f"{prefix}.{n}", p) for n, p in decoder.named_parameters() if id(p) not in language]


def _is_projector(name: str) -> bool:
    return _PROJECTOR.search(name) is not None


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, f"*{pattern}*")


def reach_of(module: Any) -> dict[str, float]:
    """Return the share of each kind of weight, in parameters, that is trained or under an adapter."""
    inner = module.get_base_model() if hasattr(module, "peft_config") else module
    ends = {id(inner.get_output_embeddings()): "head", id(inner.get_input_embeddings()): "embeddings"}
    vision = {id(parameter): name for name, parameter in _vision(inner)} if reads_images(inner.config) else {}
    totals: dict[str, list[int]] = {}
    for name, parameter, owner, reached in _base_parameters(module, inner):
        kind = next((ends[id(one)] for one in owner if id(one) in ends), None) or _kind(name)
        if id(parameter) in vision:
            kind = "image projector" if _is_projector(name) else "image encoder"
        count = totals.setdefault(kind, [0, 0])
        count[0] += _numbers(parameter)
        count[1] += _numbers(parameter) if reached else 0
    return {kind: reached / total for kind, (total, reached) in totals.items() if total}


def _base_parameters(module: Any, inner: Any) -> Any:
    """Yield each weight of the base: its name, itself, the modules around it, and whether it is trained or adapted."""
    from torch import nn

    adapted = hasattr(module, "peft_config")
    modules = dict(inner.named_modules())
    prefix = (getattr(module.base_model, "prefix", "") or "") if adapted else ""
    for name, parameter in inner.named_parameters():
        parts = name.split(".")
        if adapted and (any(prefix and part.startswith(prefix) for part in parts) or "token_adapter" in parts):
            continue
        if any(part in ("modules_to_save", "trainable_tokens_delta") for part in parts):
            continue
        around = [modules[".".join(parts[:place])] for place in range(len(parts))]
        reached = parameter.requires_grad or (adapted and any(_is_adapted(one, parts[-1]) for one in around))
        assert isinstance(parameter, nn.Parameter)
        yield name, parameter, around, reached


def _is_adapted(module: Any, parameter: str) -> bool:
    """Return whether a module has an adapter, or a trained copy that replaces it."""
    if hasattr(module, "original_module") and "default" in getattr(module, "modules_to_save", ()):
        return True
    if not hasattr(module, "base_layer") or not hasattr(module, "adapter_layer_names"):
        return False
    if hasattr(module, "token_indices"):
        return False  # some rows are not the whole matrix
    only = getattr(module, "parameter_name", None)
    return only is None or only == parameter


def _kind(name: str) -> str:
    return next((kind for kind, pattern in _KINDS if pattern.search(name)), "others")


def _numbers(parameter: Any) -> int:
    """Return the number of parameters of a weight, packed ones counted before packing."""
    state = getattr(parameter, "quant_state", None)
    shape = getattr(state, "shape", None)
    return parameter.numel() if shape is None else int(shape.numel())


def reach_note(module: Any) -> str:
    """Return the shares in one line, with the option for experts that are stacked parameters."""
    found = reach_of(module)
    shares = ", ".join(f"{kind} {_percent(share)}" for kind, share in sorted(found.items()))
    hint = ""
    if hasattr(module, "peft_config") and found.get("experts") == 0:
        inner = module.get_base_model()
        stacked = {".".join(n.split(".")[-2:]) for n, p in inner.named_parameters() if "expert" in n and p.ndim == 3}
        if stacked:
            names = ",".join(sorted(stacked))
            hint = f". Experts are stacked parameters; to train them: --lora-target-parameters {names}"
    return f"trained or under an adapter: {shares}{hint}"


def _percent(share: float) -> str:
    return "100 %" if share == 1 else "0 %" if share == 0 else f"{100 * share:.3g} %"
