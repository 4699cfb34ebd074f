"""Import of the large libraries before a run."""

from __future__ import annotations

import gc
import importlib
import sys
from typing import Any


def load_api() -> Any:
    """Import ``posttrain.api``, and with it torch and transformers: a million objects, none of them garbage.

    Collecting garbage among them takes a sixth of the import's time, so it is off meanwhile, and the imported objects
    are left out of later collections.
    """
    if "posttrain.api" not in sys.modules and gc.isenabled():
        gc.disable()
        try:
            importlib.import_module("posttrain.api")
            gc.freeze()
        finally:
            gc.enable()
    return importlib.import_module("posttrain.api")
