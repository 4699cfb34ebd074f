"""The one place where transformers loads from a name: Python code in a model's folder runs for nobody unasked."""

from __future__ import annotations

from typing import Any

#: What transformers says of a model that cannot be loaded without its own code.
_SIGNS = ("trust_remote_code", "custom code")


def read(kind: Any, source: Any, *, trust_remote_code: bool = False, **options: Any) -> Any:
    """``kind.from_pretrained(source)``; the folder's own code runs only with ``trust_remote_code``.

    Left without an answer, transformers asks on standard input whether to run it.
    """
    return kind.from_pretrained(source, trust_remote_code=trust_remote_code, **options)


def needs_own_code(error: Exception) -> bool:
    """Whether transformers refused a model for the code that it wants to run."""
    return any(sign in str(error) for sign in _SIGNS)
