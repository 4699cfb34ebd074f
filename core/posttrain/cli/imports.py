"""The long import before a run."""

from __future__ import annotations

import gc
import importlib
import sys
from typing import Any


def load_api() -> Any:
    """``posttrain.api``, and with it torch and transformers: a million objects, none of them garbage.

    Looking through them for cycles again and again is a sixth of the import's time, so nobody looks meanwhile, and
    those that are there then are left out of later searches.
    """
    if "posttrain.api" not in sys.modules and gc.isenabled():
        gc.disable()
        try:
            importlib.import_module("posttrain.api")
            gc.freeze()
        finally:
            gc.enable()
    return importlib.import_module("posttrain.api")
