"""Weights for a generator: choice of tensors, their names, and copying them into a model."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from posttrain.contract.generation import Abilities, Weights
from posttrain.errors import RunFailed


def weights_for(model: Any, abilities: Abilities, version: int, known: int) -> Weights:
    """Select the fewest weights that bring a generator from version ``known`` of ``model`` to ``version``.

    ``known`` is -1 where it has none of ours. The tensors are read when iterated, so before the next update.
    """
    adapted = hasattr(model, "peft_config")
    if adapted and abilities.adapters:
        configuration = model.peft_config["default"].to_dict()
        return Weights(version, "adapter", lambda: _adapter(model), adapter=configuration)
    if not abilities.merged or (known >= 0 and not adapted):
        return Weights(version, "changed", lambda: _trained(model), base=known)
    return Weights(version, "full", lambda: _merged(model) if adapted else _all(model))


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor without gradient, gathered from all ranks where it is sharded."""
    tensor = tensor.detach()
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _all(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter once, and the buffers that are saved."""
    known = {id(parameter) for parameter in model.parameters()}
    for name, tensor in model.named_parameters():
        yield name, whole(tensor)
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in known:
            yield name, whole(tensor)


def _trained(model: Any) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name, whole(parameter)


def _adapter(model: Any) -> Iterator[tuple[str, Tensor]]:
    from peft import get_peft_model_state_dict

    for name, tensor in get_peft_model_state_dict(model, adapter_name="default", save_embedding_layers=False).items():
        yield name, whole(tensor)


def _merged(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the base with its adapter merged, under the base's own names; one layer at a time is copied."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    base = model.get_base_model()
    layers: dict[str, Any] = {name: m for name, m in base.named_modules() if isinstance(m, BaseTunerLayer)}
    done: set[int] = set()
    for name, layer in layers.items():
        done |= {id(parameter) for parameter in layer.parameters()}
        changed: Any = copy.deepcopy(layer)
        changed.merge(adapter_names=["default"])
        for own, parameter in changed.get_base_layer().named_parameters():
            yield f"{name}.{own}", whole(parameter)
    for name, parameter in base.named_parameters():
        if id(parameter) not in done:
            yield name, whole(parameter)


def put(model: Any, weights: Weights) -> int:
    """Copy ``weights`` into a model of the same build, in place; return the bytes. Raises RunFailed for a mismatch."""
    tensors: dict[str, Tensor] = dict(weights.tensors())
    with torch.no_grad():
        if weights.kind == "adapter":
            from peft import set_peft_model_state_dict

            outcome: Any = set_peft_model_state_dict(model, tensors, adapter_name="default")
            unknown = list(outcome.unexpected_keys)
        else:
            own = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
            unknown = [n for n, t in tensors.items() if n not in own or own[n].shape != t.shape]
            for name in tensors.keys() - set(unknown):
                own[name].copy_(tensors[name])
    if unknown:
        raise RunFailed(
            f"Weights of version {weights.version} do not fit the generator's model: '{unknown[0]}' and "
            f"{len(unknown) - 1} more are unknown or of another shape there. Start both from the same model."
        )
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
