"""LLM post-training with a small core, and every method a separately installable plugin.

Everything here loads on first use: ``import posttrain`` imports neither torch nor transformers.
"""

from __future__ import annotations

import importlib
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from posttrain import errors
    from posttrain.api import evaluate, resume, train
    from posttrain.catalogue.discovery import installed as list_methods
    from posttrain.catalogue.methods import load as load_method
    from posttrain.contract import prompts, samples, tensors, views
    from posttrain.contract.hookspecs import hookimpl
    from posttrain.contract.planning import SampleRequest, Selection
    from posttrain.contract.rollout import Rollout
    from posttrain.contract.views import PerToken
    from posttrain.environments.environment import Environment, Observation
    from posttrain.environments.tools import tool
    from posttrain.errors import PosttrainError

#: Public name -> (module, name there; empty for the module itself).
_HOMES = {
    "Ask": ("posttrain.contract.planning", "SampleRequest"),  # its name until 0.1
    "SampleRequest": ("posttrain.contract.planning", "SampleRequest"),
    "Environment": ("posttrain.environments.environment", "Environment"),
    "Observation": ("posttrain.environments.environment", "Observation"),
    "PerToken": ("posttrain.contract.views", "PerToken"),
    "PosttrainError": ("posttrain.errors", "PosttrainError"),
    "Rollout": ("posttrain.contract.rollout", "Rollout"),
    "Selection": ("posttrain.contract.planning", "Selection"),
    "errors": ("posttrain.errors", ""),
    "evaluate": ("posttrain.api", "evaluate"),
    "hookimpl": ("posttrain.contract.hookspecs", "hookimpl"),
    "list_methods": ("posttrain.catalogue.discovery", "installed"),
    "load_method": ("posttrain.catalogue.methods", "load"),
    "prompts": ("posttrain.contract.prompts", ""),
    "resume": ("posttrain.api", "resume"),
    "samples": ("posttrain.contract.samples", ""),
    "tensors": ("posttrain.contract.tensors", ""),
    "tool": ("posttrain.environments.tools", "tool"),
    "train": ("posttrain.api", "train"),
    "views": ("posttrain.contract.views", ""),
}

__all__ = [
    "Ask",
    "Environment",
    "Observation",
    "PerToken",
    "PosttrainError",
    "Rollout",
    "SampleRequest",
    "Selection",
    "__version__",
    "errors",
    "evaluate",
    "hookimpl",
    "list_methods",
    "load_method",
    "prompts",
    "resume",
    "samples",
    "tensors",
    "tool",
    "train",
    "views",
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


class _ContractPaths(MetaPathFinder, Loader):
    """Import ``posttrain.tensors`` and its like: modules of ``posttrain.contract`` under a shorter path."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """Return a spec for the short path of a module; None for anything else."""
        package, _, name = fullname.rpartition(".")
        home, attribute = _HOMES.get(name, ("", ""))
        short = package == __name__ and home not in ("", fullname) and not attribute
        return ModuleSpec(fullname, self) if short else None

    def create_module(self, spec: ModuleSpec) -> Any:
        """Return the module itself, not a copy: its classes must be the same under both paths."""
        module = importlib.import_module(_HOMES[spec.name.rpartition(".")[2]][0])
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: Any) -> None:
        """Restore the spec of the module, which has run already: reloading and pickling read it."""
        module.__spec__ = module.__spec__.loader_state


sys.meta_path.append(_ContractPaths())
