"""Weights in checkpoint form, which engines load, whatever the trainer has changed in the model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from posttrain.network.images import language_part
from posttrain.network.token_model import decoder_of

if TYPE_CHECKING:
    from posttrain.contract.generation import Weights
    from posttrain.network.token_model import TokenModel

#: Bytes that travel together; a decoder layer is never split.
PART_BYTES = 256 << 20
#: Image encoders of transformers whose released files have a level ``vision_model``.
_TOWERS = ("CLIPVisionModel", "SiglipVisionModel")


def parts(model: Any, pairs: Iterable[tuple[str, Tensor]], dtype: torch.dtype) -> Iterator[dict[str, Tensor]]:
    """Yield ``pairs`` of the state of the transformers ``model`` under checkpoint names, in parts.

    Floating-point tensors are cast to ``dtype``, the engine's compute dtype.
    """
    from transformers.core_model_loading import revert_weight_conversion

    names = _released(model)
    found: dict[str, Tensor] = {}
    size, layer = 0, ""
    for name, tensor in pairs:
        if size >= PART_BYTES and _layer(name) != layer:
            yield names(revert_weight_conversion(model, found))
            found, size = {}, 0
        plain = tensor.detach()
        found[name] = plain.to(dtype) if plain.is_floating_point() else plain
        size += found[name].numel() * found[name].element_size()
        layer = _layer(name)
    if found:
        yield names(revert_weight_conversion(model, found))


def _released(model: nn.Module) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Return what gives tensors the names of a family's released files, which engines know.

    CLIP's and SigLIP's image encoders have there a level more than the modules, and than files of models that
    transformers made anew.
    """
    found = [name.split(".")[-1] for name, module in model.named_modules() if type(module).__name__ in _TOWERS]
    inside = re.compile(rf"^((?:.+\.)?(?:{'|'.join(found)})\.)(?!vision_model\.)")
    return lambda part: (
        {inside.sub(r"\1vision_model.", name): tensor for name, tensor in part.items()} if found else part
    )


def pairs_of(model: Any, weights: Weights) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of ``weights``, and the frozen ones of each decoder layer that changes.

    Engines fuse some matrices of a layer, and take the parts of such a matrix together or not at all.
    """
    given: set[str] = set()
    for name, tensor in weights.tensors():
        given.add(name)
        yield name, tensor
    if weights.kind == "changed":
        layers = {_layer(name) for name in given} - {""}
        for name, parameter in model.named_parameters():
            if _layer(name) in layers and name not in given:
                yield name, _plain(model, parameter)


def _layer(name: str) -> str:
    """Return ``name`` up to its first number; empty where it has none."""
    words = name.split(".")
    return ".".join(words[: next((i + 1 for i, word in enumerate(words) if word.isdigit()), 0)])


def base_pairs(policy: TokenModel) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights under the adapters, which never change; quantised ones are dequantised."""
    seen: set[int] = set()
    for prefix, module in policy.inner.named_modules():
        if ".lora_" in f".{prefix}":
            continue
        place = prefix.replace(".base_layer", "")
        for name, tensor in _own(module):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield (f"{place}.{name}" if place else name), _plain(module, tensor)


def _own(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(recurse=False)
    passing = module._non_persistent_buffers_set
    yield from ((name, b) for name, b in module.named_buffers(recurse=False) if name not in passing)


def _plain(module: Any, tensor: Any) -> Tensor:
    if hasattr(tensor, "quant_state") or hasattr(tensor, "SCB"):
        from peft.utils.integrations import dequantize_module_weight

        return dequantize_module_weight(module)
    gather = getattr(tensor, "full_tensor", None)  # sharded over ranks
    return tensor if gather is None else gather()


def applies_adapter(policy: TokenModel) -> bool:
    """Whether an engine applies the policy's adapter as peft does: plain LoRA of one rank, on linear layers of text.

    vLLM leaves out, or refuses, what lies on an image encoder or a projector.
    """
    config = getattr(policy.model, "peft_config", {}).get("default")
    if config is None:
        return False
    kind = getattr(config.peft_type, "value", config.peft_type)
    unusual = ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "target_parameters", "layer_replication")
    unlike = any(getattr(config, name, None) for name in (*unusual, "trainable_token_indices"))
    plain = kind == "LORA" and config.bias == "none" and not unlike
    vocabulary = policy.inner.get_output_embeddings(), policy.inner.get_input_embeddings()
    decoder = decoder_of(policy.inner)
    text = set(language_part(decoder).modules())
    plain = plain and all(module in text for module in decoder.modules() if hasattr(module, "base_layer"))
    plain = plain and config.init_lora_weights in (True, False, "gaussian", "orthogonal")  # others change the base
    return plain and not any(hasattr(module, "base_layer") for module in vocabulary)


def adapter_rank(policy: TokenModel) -> int | None:
    """Return the rank that an engine must provide, rounded up to one of vLLM's; None where it applies no adapter."""
    if not applies_adapter(policy):
        return None
    rank = policy.model.peft_config["default"].r  # type: ignore[union-attr, index]  # a peft model
    return next((one for one in (1, 8, 16, 32, 64, 128, 256, 320, 512) if one >= rank), rank)


def adapter_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return peft's configuration as its file has it."""
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    return {**plain, "inference_mode": True, "task_type": "CAUSAL_LM", "peft_type": "LORA"}
