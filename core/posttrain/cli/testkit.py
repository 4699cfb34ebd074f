"""Import of the conformance kit on demand: it is a separate distribution, which training does not need."""

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
            raise  # an import inside the kit failed, whose name and traceback say more
        raise DependencyError(
            "The conformance kit is not installed. Install it with: pip install 'posttrain[check]'"
        ) from None
