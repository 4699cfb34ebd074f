"""Tensor parallelism: each layer's matrices are split over ranks that compute one forward pass together.

transformers' plan of the model family says which matrices, and its own code splits them. The vocabulary projection and
the embedding, which the core reads itself, stay whole.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from transformers.distributed.tensor_parallel import apply_tensor_parallelism

from posttrain.errors import ModelError


def split_layers(inner: Any, mesh: DeviceMesh) -> None:
    """Split the layers of a transformers model over ``mesh``, in place. Raises ModelError where it has no plan."""
    plan = check_plan(inner, mesh.size())
    apply_tensor_parallelism(inner, mesh, plan)
    for module in inner.modules():
        # the recomputing gated layer multiplies by its last matrix itself, past the code that joins the parts
        if "forward" in module.__dict__ and _names(module, plan):
            del module.forward


def check_plan(inner: Any, size: int) -> dict[str, str]:
    """Return the family's plan for its layers. Raises ModelError without one, or if ``size`` does not divide them."""
    kind = type(inner).__name__
    prefix = f"{inner.base_model_prefix}.layers."
    # Experts stay whole: --expert-parallel divides those, and checkpoints cannot describe how this plan would.
    plan = {
        name: style
        for name, style in (inner.tp_plan or {}).items()
        if name.startswith(prefix) and "experts" not in name.split(".")
    }
    if not plan:
        raise ModelError(f"transformers has no plan for splitting {kind}. Leave --tensor-parallel out.")
    config = inner.config.get_text_config()
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        value = getattr(config, name, size)
        if value % size:
            raise ModelError(
                f"--tensor-parallel {size} does not divide the {name} of {kind}, {value}. Choose a divisor of it."
            )
    return plan


def _names(module: nn.Module, plan: dict[str, str]) -> bool:
    """Return whether a child of ``module`` is split."""
    last = {name.rpartition(".")[2] for name in plan}
    return any(name in last for name, _ in module.named_children())
