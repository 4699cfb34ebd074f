"""Expert parallelism: each rank holds some experts of every layer whole, and tokens travel to the experts they chose.

transformers' own plan of the model family says which modules hold experts, and its own code sends the tokens and takes
the results back. Everything else is sharded as without it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from posttrain.errors import ModelError

#: transformers' name for experts that tokens are sent to.
_DISPATCHED = "ep_dispatch_experts"


def divide_experts(model: Any, mesh: DeviceMesh) -> list[nn.Module]:
    """Divide the experts of a transformers or peft ``model`` over ``mesh``, in place; returns the modules of experts.

    Raises ModelError where transformers has no plan for the family, or the experts cannot be divided evenly.
    """
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    kind, size = type(inner).__name__, mesh.size()
    plan = dict(inner.ep_plan or {})
    if _DISPATCHED not in plan.values():
        raise ModelError(
            f"--expert-parallel {size}: transformers has no plan for sending tokens to the experts of {kind}. Leave "
            "it out."
        )
    named = {name: module for name, module in inner.named_modules() if _stacked(module)}
    experts = list(named.values())
    if any(name.endswith(".base_layer") for name in named):  # what peft calls a module that it wraps
        raise ModelError(
            f"--expert-parallel {size} divides the weights of experts, and those of {kind} have adapters on them. "
            "Leave it out, or leave --lora-target-parameters out."
        )
    count = experts[0].num_experts
    if count % size:
        raise ModelError(f"--expert-parallel {size} does not divide the {count} experts of {kind}. Choose a divisor.")
    nobody: Any = None  # ranks of one part of the data, which would share its tokens out: there are none
    _divide(size)(inner, mesh, nobody, plan)
    return experts


def _divide(size: int) -> Callable[..., Any]:
    """Return transformers' function, which has moved between versions. Raises ModelError for one without it.

    It is imported only where experts are divided: fsdp itself works with every version that the core allows.
    """
    try:
        from transformers.distributed.expert_parallel import apply_expert_parallelism
    except ImportError:
        try:
            from transformers.distributed.tensor_parallel import apply_expert_parallelism
        except ImportError:
            raise ModelError(
                f"--expert-parallel {size} needs a newer transformers than {transformers.__version__}, which does not "
                "send tokens to experts. Upgrade it with: pip install -U transformers"
            ) from None
    return apply_expert_parallelism


def _stacked(module: Any) -> bool:
    """Whether ``module`` holds the weights of all its experts in its own parameters."""
    own = [p for p in module.parameters(recurse=False) if p.ndim == 3]
    return bool(own) and all(len(p) == getattr(module, "num_experts", None) for p in own)
