"""The only calls of ``from_pretrained``: Python code in a model's folder does not run unless allowed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from posttrain.errors import ModelError, first_line
from posttrain.models.config_files import ADVICE, check_folder
from posttrain.models.quiet import expected_report, quiet

#: Weights that a language model lacks, by kind of head.
NEW_HEADS: dict[str, tuple[str, ...]] = {"vocabulary": (), "score": ("score.",), "steps": ("score.", "classifier.")}
#: Parts of transformers' messages for a model that needs its own code.
_SIGNS = ("trust_remote_code", "custom code")


def read(kind: Any, source: Any, *, trust_remote_code: bool = False, **options: Any) -> Any:
    """Call ``kind.from_pretrained(source)``; the folder's own code runs only with ``trust_remote_code``.

    Without the argument transformers asks on standard input whether to run it. Raises ModelError where ``source`` is a
    folder with a damaged JSON file, or one with values that its library cannot use; what else is raised is the
    library's.
    """
    if not os.path.isdir(source):
        with quiet():
            return kind.from_pretrained(source, trust_remote_code=trust_remote_code, **options)
    check_folder(Path(source))
    with quiet(), _named_file(kind, Path(source), trust_remote_code):
        return kind.from_pretrained(source, trust_remote_code=trust_remote_code, **options)


@contextlib.contextmanager
def _named_file(kind: Any, folder: Path, trusted: bool) -> Iterator[None]:
    """Turn what a library raises about values in one JSON file of ``folder`` into a ModelError with that file.

    The libraries name neither file nor field, and raise anything.
    """
    import torch

    try:
        yield
    except (ModelError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        if needs_own_code(error):
            raise
        for name, read_alone in _readers(kind, folder, trusted).items():
            if not (folder / name).is_file():
                continue
            try:
                read_alone()
            except Exception as fault:
                if needs_own_code(fault):
                    raise error from None
                reason = first_line(fault).rstrip(".")
                raise ModelError(f"'{folder / name}' holds what cannot be used: {reason}. {ADVICE}") from None
        raise


def _readers(kind: Any, folder: Path, trusted: bool) -> dict[str, Callable[[], Any]]:
    """Return what reads each JSON file on its own, in the order in which the others need them."""
    import transformers
    from tokenizers import Tokenizer

    def config() -> Any:
        return transformers.AutoConfig.from_pretrained(folder, trust_remote_code=trusted)

    def modules() -> None:
        import torch

        with torch.device("meta"):
            kind.from_config(config(), trust_remote_code=trusted)

    def generation() -> Any:
        return transformers.GenerationConfig.from_pretrained(folder, trust_remote_code=trusted)

    return {
        "config.json": modules if hasattr(kind, "from_config") else config,
        "generation_config.json": generation,
        "tokenizer.json": lambda: Tokenizer.from_file(str(folder / "tokenizer.json")),
    }


def read_model(
    kind: Any, source: Any, head: str, *, trust_remote_code: bool = False, **options: Any
) -> tuple[Any, Any]:
    """Load a model by ``read``, with transformers' report of its weights; those of a new head are expected to lack.

    Raises ModelError for weights of other shapes than the configuration's.
    """
    with expected_report(NEW_HEADS[head]) as report:
        options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # refused below, by name
        model, found = read(kind, source, trust_remote_code=trust_remote_code, **options)
        report(found)
    for name, stored, wanted in sorted(found["mismatched_keys"]):
        raise ModelError(
            f"The model of '{source}' cannot be loaded: '{name}' has the shape {tuple(stored)} in the weights, "
            f"expected {tuple(wanted)}. Check the sizes in its config.json, or copy the model again."
        )
    return model, found


def needs_own_code(error: Exception) -> bool:
    """Return whether transformers refused a model because of its own code."""
    return any(sign in str(error) for sign in _SIGNS)
