"""The conformance kit is a distribution of its own, which nobody needs who only trains: import it when it is wanted."""

from __future__ import annotations

import importlib
from types import ModuleType

from posttrain.errors import DependencyError


def testkit(module: str) -> ModuleType:
    """Import ``posttrain_testkit.MODULE``. Raises DependencyError where the kit is not installed."""
    try:
        return importlib.import_module(f"posttrain_testkit.{module}")
    except ModuleNotFoundError as error:
        if error.name != "posttrain_testkit":
            raise  # something inside the kit, whose name and traceback say more
        raise DependencyError(
            "The conformance kit is not installed. Install it with: pip install 'posttrain[check]'"
        ) from None
