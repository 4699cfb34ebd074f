"""Device and dtype of a model, from its settings and the machine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch

from posttrain.errors import SettingsError, first_line

if TYPE_CHECKING:
    from posttrain.settings import ModelSettings

_ADVICE = "posttrain doctor says what is here; without --device the best is taken."
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def choose_device(settings: ModelSettings) -> torch.device:
    """Return the named device, or the best available."""
    if settings.device is not None:
        return _named_device(settings.device)
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _named_device(name: str) -> torch.device:
    """Return a device of this machine. Raises SettingsError for a name of none."""
    try:
        found = torch.device(name)
    except RuntimeError as error:
        raise SettingsError(f"device is '{name}', which is none ({first_line(error)}). {_ADVICE}") from None
    backend: Any = getattr(torch, found.type, None)  # asked without a context on the device, which takes its memory
    if found.type not in ("cpu", "meta") and not (hasattr(backend, "is_available") and backend.is_available()):
        raise SettingsError(f"device is '{name}', and torch finds no {found.type} on this machine. {_ADVICE}")
    if (found.index or 0) and hasattr(backend, "device_count") and found.index >= backend.device_count():
        raise SettingsError(f"device is '{name}', and torch finds {backend.device_count()} of them. {_ADVICE}")
    return found


def choose_dtype(settings: ModelSettings, device: torch.device) -> torch.dtype:
    """Return float32, or bfloat16 for a frozen base under adapters on a GPU."""
    if settings.dtype is not None:
        return DTYPES[settings.dtype]
    frozen = settings.lora or settings.dora or settings.quantize
    return torch.bfloat16 if device.type == "cuda" and frozen else torch.float32
