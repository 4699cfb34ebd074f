"""Kernels of the package liger-kernel for norms and gated layers, on NVIDIA GPUs, on request.

Only this one model gets them: Liger also replaces classes and functions of transformers for models loaded later, on a
CPU too, and that is undone. So its rotary positions, which need that, are left out. The vocabulary projection stays the
core's own: Liger's fused loss takes one scalar for all tokens, methods weight each.
"""

from __future__ import annotations

import inspect
import sys
from typing import TYPE_CHECKING, Any

import torch

from posttrain.errors import DependencyError, ModelError, SettingsError
from posttrain.network.token_model import decoder_of

if TYPE_CHECKING:
    from torch import Tensor

#: Replaced parts of a model, by the names of Liger's own switches.
_ON = ("rms_norm", "swiglu", "geglu", "layer_norm")
_OFF = ("rope", "cross_entropy", "fused_linear_cross_entropy")
#: Largest difference of hidden states, relative to their largest entry: rounding of the type, several layers deep.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 2e-2}


def use_liger(inner: Any, device: torch.device) -> str:
    """Replace parts of ``inner`` by Liger's kernels and compare; return a log line of what was done.

    Raises SettingsError without an NVIDIA GPU, DependencyError without the package, ModelError for a family that Liger
    does not support or whose hidden states change.
    """
    if device.type != "cuda":
        raise SettingsError(f"--liger needs an NVIDIA GPU, and the model is on '{device.type}'. Leave it out.")
    try:
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN as known
    except ImportError:
        raise DependencyError(
            "--liger needs the package liger-kernel. Install it with: pip install 'posttrain[liger]'"
        ) from None
    family = inner.config.model_type
    if family not in known:
        raise ModelError(f"liger-kernel has no kernels for models of type '{family}'. Leave --liger out.")
    before = _states(inner, device)
    taken = inspect.signature(known[family]).parameters
    module = vars(sys.modules[type(inner).__module__])
    everyone = dict(module)
    known[family](model=inner, **{n: n in _ON for n in (*_ON, *_OFF) if n in taken})
    module.update(everyone)
    after = _states(inner, device)
    worst = float((after - before).abs().max() / before.abs().max())
    bound = _TOLERANCE.get(next(inner.parameters()).dtype, 1e-3)
    if not worst <= bound:
        raise ModelError(
            f"liger-kernel changes the hidden states of {type(inner).__name__} by {worst:.2g} of their size, expected "
            f"at most {bound:g}. Leave --liger out."
        )
    parts = [name.replace("_", " ") for name in _ON if name in taken]
    return f"liger kernels: {', '.join(parts)} (hidden states within {worst:.1g})"


@torch.no_grad()
def _states(inner: Any, device: torch.device) -> Tensor:
    """Return hidden states ``(1, 32, H)`` of a few tokens."""
    ids = (torch.arange(32, device=device) * 7 + 3) % inner.config.get_text_config().vocab_size
    return decoder_of(inner)(input_ids=ids[None], use_cache=False).last_hidden_state.float()
