"""Small JSON files of a model's folder: a damaged one is an error with its name before a library stumbles over it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from posttrain.errors import ModelError, short
from posttrain.models.config_values import fault_in
from posttrain.runs.json_file import read_object

#: Files that transformers and peft read, where a folder has them.
_NAMES = (
    *("config.json", "generation_config.json", "adapter_config.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "preprocessor_config.json", "processor_config.json"),
)
ADVICE = "Copy the model again from where it came from."
#: Kinds of head by the task of an adapter.
_TASKS = {"SEQ_CLS": "score", "TOKEN_CLS": "steps"}


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """Read one JSON file of a model's folder. Raises ModelError where it is missing or damaged."""
    file = folder / name
    if not os.path.lexists(file):
        raise ModelError(f"Model folder '{folder}' has no {name}. Expected a folder saved by transformers or peft.")
    return read_object(file, ModelError, ADVICE)


def check_folder(folder: Path) -> None:
    """Raise ModelError for a damaged JSON file in a model's folder, a value that no model has, or lost weights."""
    for name in _NAMES:
        if os.path.lexists(folder / name):
            fault = fault_in(name, read_config(folder, name))
            if fault:
                raise ModelError(f"'{folder / name}' {fault}. {ADVICE}")
    for file in sorted(folder.glob("*.index.json")):
        listed = read_config(folder, file.name).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
            raise ModelError(f"'{file}' has {short(listed)} as its weight_map, expected names of files. {ADVICE}")
        lost = sorted(name for name in set(listed.values()) if not (folder / name).is_file())
        if lost:
            raise ModelError(f"'{file}' names {len(lost)} files that are not there, first '{lost[0]}'. {ADVICE}")


def architectures(folder: Path) -> list[str]:
    """Return the classes that a model's config.json names. Raises ModelError where it is missing or damaged."""
    found = read_config(folder, "config.json").get("architectures") or []
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        file = folder / "config.json"
        raise ModelError(f"'{file}' has {short(found)} as its architectures, expected names of classes. {ADVICE}")
    return found


def adapter_head(folder: Path) -> str:
    """Return the kind of head of an adapter's model: vocabulary, score or steps. Raises ModelError."""
    return _TASKS.get(str(read_config(folder, "adapter_config.json").get("task_type")), "vocabulary")
