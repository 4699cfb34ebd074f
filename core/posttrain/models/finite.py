"""Search for weights that are not finite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from posttrain.errors import ModelError


def nonfinite(module: nn.Module, trained: bool = False) -> list[str]:
    """Name the parameters, or only the ``trained`` ones, of which this rank's part holds NaN or infinity."""
    chosen = ((name, p) for name, p in module.named_parameters() if p.requires_grad or not trained)
    return [name for name, parameter in chosen if not _is_finite(parameter)]


def finite(what: str, module: Any) -> Any:
    """Return a loaded model, called ``what``. Raises ModelError where one of its weights is not finite."""
    bad = nonfinite(module)
    if bad:
        raise ModelError(
            f"{what} has weights that are not finite, first in '{bad[0]}'. Check the copy, or take an earlier "
            "checkpoint."
        )
    return module


def explained(model: str, module: nn.Module, error: ModelError) -> ModelError:
    """Return the error of a loaded model that fails its checks, with its name; broken weights are the likely reason."""
    try:
        finite(f"Model '{model}'", module)
    except ModelError as found:
        return found
    return error if model in str(error) else ModelError(f"'{model}': {error}")


@torch.no_grad()
def _is_finite(parameter: nn.Parameter) -> bool:
    if not (parameter.is_floating_point() or parameter.is_complex()):
        return True
    local = local_part(parameter)
    if not local.numel():
        return True
    return all(bool(value.isfinite()) for value in torch.aminmax(local))  # one pass, no copy; NaN goes through


def local_part(parameter: Any) -> Tensor:
    """Return this rank's part of a tensor: the shard of fully_shard or of ZeRO stage 3, or the whole tensor."""
    if hasattr(parameter, "to_local"):
        return parameter.detach().to_local()
    return getattr(parameter, "ds_tensor", parameter.detach())
