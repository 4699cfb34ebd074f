"""LLM post-training with a small core, and every method a separately installable plugin.

Everything here loads on first use: ``import posttrain`` imports neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from posttrain import errors
    from posttrain.api import resume, train
    from posttrain.discovery import installed as list_methods
    from posttrain.errors import PosttrainError
    from posttrain.hookspecs import hookimpl
    from posttrain.methods import load as load_method
    from posttrain.planning import Ask, Selection
    from posttrain.rollouts.rollouts import Rollout
    from posttrain.views import PerToken

#: Public name -> (module, name there; empty for the module itself).
_HOMES = {
    "Ask": ("posttrain.planning", "Ask"),
    "PerToken": ("posttrain.views", "PerToken"),
    "PosttrainError": ("posttrain.errors", "PosttrainError"),
    "Rollout": ("posttrain.rollouts.rollouts", "Rollout"),
    "Selection": ("posttrain.planning", "Selection"),
    "errors": ("posttrain.errors", ""),
    "hookimpl": ("posttrain.hookspecs", "hookimpl"),
    "list_methods": ("posttrain.discovery", "installed"),
    "load_method": ("posttrain.methods", "load"),
    "resume": ("posttrain.api", "resume"),
    "train": ("posttrain.api", "train"),
}

__all__ = [
    "Ask",
    "PerToken",
    "PosttrainError",
    "Rollout",
    "Selection",
    "__version__",
    "errors",
    "hookimpl",
    "list_methods",
    "load_method",
    "resume",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'posttrain' has no attribute '{name}'. It has: {', '.join(__all__)}")
    module, attribute = _HOMES[name]
    value: Any = importlib.import_module(module)
    if attribute:
        value = getattr(value, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
