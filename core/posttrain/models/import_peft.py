"""Import of peft without torch's compiler, which bitsandbytes would start for functions that few runs call."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

from posttrain.models.quiet import quiet


def import_peft() -> Any:
    """Import peft in a third of a second instead of one and a half.

    peft imports bitsandbytes where it is installed, which passes some functions to ``torch.compile`` at import. Here
    they are compiled at their first call instead.
    """
    if "peft" not in sys.modules:
        at_once = torch.compile
        setattr(torch, "compile", _at_first_call(at_once))  # noqa: B010  mypy takes no assignment to a function
        try:
            with quiet():
                import peft  # noqa: F401
        finally:
            setattr(torch, "compile", at_once)  # noqa: B010
    return sys.modules["peft"]


def _at_first_call(at_once: Callable[..., Any]) -> Callable[..., Any]:
    """Return a ``torch.compile`` that compiles a function at its first call."""

    def compile_later(model: Any = None, **options: Any) -> Any:
        if model is None:
            return lambda function: compile_later(function, **options)
        if isinstance(model, torch.nn.Module):
            return at_once(model, **options)
        made: list[Any] = []

        def call(*arguments: Any, **keywords: Any) -> Any:
            if not made:
                made.append(at_once(model, **options))
            return made[0](*arguments, **keywords)

        return call

    return compile_later
