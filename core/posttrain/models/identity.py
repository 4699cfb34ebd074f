"""Identity of a model's weights without reading all of them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from posttrain.models.adapters import adapter_base

#: Files of a model's folder that decide its log-probs.
_DECIDING = ("config.json", "adapter_config.json", "*.safetensors", "*.safetensors.index.json", "*.py")
#: Bytes and number of the blocks read from a file, spread evenly from its first to its last byte.
_BLOCK, _BLOCKS = 4096, 256


def weights_identity(model: str) -> list[Any] | None:
    """Return facts that differ whenever the weights named ``model`` may differ; None where they are unknown.

    A folder or .gguf file: its path, and the name, size, time and sampled content of each deciding file. A Hub id: the
    commit on this machine. An adapter: its own facts and those of its base model.
    """
    path = Path(model).expanduser()
    if path.suffix == ".gguf":
        return _facts(path.parent, [path]) if path.is_file() else None
    if not path.is_dir():
        return _hub_identity(model)
    own = _facts(path, sorted({file for pattern in _DECIDING for file in path.glob(pattern)}))
    base = adapter_base(model)
    if base is None:
        return own
    below = weights_identity(base)
    return None if below is None else [own, below]


def _hub_identity(model: str) -> list[Any] | None:
    """Return the commit of a snapshot in the Hub's cache."""
    from transformers.utils import cached_file

    try:
        config = cached_file(model, "config.json")
    except (OSError, ValueError):  # neither online nor on this machine: loading reports it
        return None
    return None if config is None else ["hub", model, Path(config).parent.name]


def _facts(folder: Path, files: list[Path]) -> list[Any]:
    facts: list[Any] = [str(folder.resolve())]
    for file in files:
        status = file.stat()
        facts.append([file.name, status.st_size, status.st_mtime_ns, _sample(file, status.st_size)])
    return facts


def _sample(file: Path, size: int) -> str:
    """Hash evenly spread blocks: sizes and times alone agree where files were unpacked with fixed times."""
    digest = hashlib.blake2b(digest_size=16)
    step = max(_BLOCK, (size - _BLOCK) / (_BLOCKS - 1))
    with file.open("rb") as stream:
        for place in range(min(_BLOCKS, 1 + int(size // step))):
            stream.seek(int(place * step))
            digest.update(stream.read(_BLOCK))
    return digest.hexdigest()
