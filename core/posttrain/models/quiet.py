"""What libraries print while a model is loaded or saved, kept off the run's own progress line."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

#: What transformers calls its table of weights that were absent, left over or of another shape.
_REPORT = "LOAD REPORT"
#: Weights of a language model's own head, left over where another head takes its place.
_OLD_HEADS = ("lm_head.", "embed_out.")


@contextmanager
def quiet() -> Iterator[None]:
    """Hide transformers' progress bars and bitsandbytes' warnings about kernels while a block runs.

    Afterwards both are as a program has set them.
    """
    from transformers.utils import logging as bars

    shown, kernels = bars.is_progress_bar_enabled(), logging.getLogger("bitsandbytes")
    level = kernels.level
    if shown:
        bars.disable_progress_bar()
    kernels.setLevel(logging.ERROR)
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()
        kernels.setLevel(level)


@contextmanager
def expected_report(new_head: tuple[str, ...]) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Hold back transformers' table of weights until the block says by ``report`` what is in it.

    A table that names a new head alone (weights that begin with ``new_head``), and the language model's head that it
    replaces, is dropped: that is what was asked for. So is one of weights of other shapes, which are an error. Any
    other, and that of a load that fails, is printed.
    """
    logger, held = logging.getLogger("transformers.modeling_utils"), list[logging.LogRecord]()

    def hold(record: logging.LogRecord) -> bool:
        is_table = _REPORT in record.getMessage()
        if is_table:
            held.append(record)
        return not is_table

    def report(found: dict[str, Any]) -> None:
        as_expected = all(name.startswith(new_head) for name in found["missing_keys"])
        as_expected = as_expected and all(name.startswith(_OLD_HEADS) for name in found["unexpected_keys"])
        if as_expected or found["mismatched_keys"]:
            held.clear()

    logger.addFilter(hold)
    try:
        yield report
    finally:
        logger.removeFilter(hold)
        for record in held:
            logger.handle(record)
