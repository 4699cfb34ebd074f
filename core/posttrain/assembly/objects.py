"""Objects that a Python program passes instead of names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass
class InMemory:
    """Objects that a Python program passes instead of names."""

    model: nn.Module | None = None
    tokenizer: Any = None
    data: Any = None
    eval_data: Any = None
    reward: list[Callable[..., Any] | str] | None = None
    teacher: nn.Module | None = None
    judge: Callable[..., Any] | None = None
    environment: Any = None
    tools: list[Callable[..., Any]] | None = None
    observers: list[Any] = field(default_factory=list)
