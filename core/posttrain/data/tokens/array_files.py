"""The arrays of many parts of a dataset joined, in memory or in one file each."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np

from posttrain.data.tokens.token_arrays import Arrays

#: Arrays of places, which begin with 0, and the array whose elements they count.
_PLACES = {"starts": "ids", "examples": "roles", "text_starts": "texts"}
#: Bytes from which an array stays on disk.
_LARGE = 64 * 2**20


class Joined:
    """Appends the arrays of parts. With a ``folder`` they go to its files, and memory holds one part at a time."""

    def __init__(self, folder: Path | None):
        self.folder = folder
        self.roles: list[str] = []
        self._sizes: dict[str, int] = {}
        self._types: dict[str, np.dtype[Any]] = {}
        self._parts: dict[str, list[np.ndarray]] = {}
        self._files: dict[str, IO[bytes]] = {}
        self._hashes: dict[str, Any] = {}
        self._open = ExitStack()

    def __enter__(self) -> Joined:
        return self

    def __exit__(self, *raised: object) -> None:
        self._open.close()

    @property
    def sequences(self) -> int:
        """Sequences so far."""
        return self._sizes.get("roles", 0)

    def append(self, arrays: Arrays, roles: list[str]) -> None:
        """Add a part, whose ``roles`` name what its array of roles holds. Raises OSError of a full disk."""
        self.roles += [role for role in roles if role not in self.roles]
        number_of = np.array([self.roles.index(role) for role in roles] or [0], dtype=np.uint8)
        before = dict(self._sizes)
        for name, values in arrays.items():
            if name == "roles":
                values = number_of[values]
            elif name in _PLACES:
                values = values + before.get(_PLACES[name], 0)
                values = values[1:] if name in before else values
            self._add(name, values)

    def _add(self, name: str, values: np.ndarray) -> None:
        self._sizes[name] = self._sizes.get(name, 0) + len(values)
        self._types[name] = values.dtype
        if self.folder is None:
            self._parts.setdefault(name, []).append(values)
            return
        if name not in self._files:
            self._files[name] = self._open.enter_context(file_of(self.folder, name).open("wb"))
            self._hashes[name] = hashlib.sha256()
        self._hashes[name].update(np.ascontiguousarray(values).view(np.uint8))
        values.tofile(self._files[name])

    def arrays(self) -> Arrays:
        """Everything appended; of files as they lie on disk, read when they are used. Nothing is appended after it."""
        if self.folder is None:
            return {name: np.concatenate(parts) for name, parts in self._parts.items()}
        self._open.close()
        return {name: _mapped(self.folder, name, self._types[name], size) for name, size in self._sizes.items()}

    def described(self) -> dict[str, list[Any]]:
        """Return type, length and hash of each array's file; nothing without files."""
        return {name: [str(self._types[name]), self._sizes[name], h.hexdigest()] for name, h in self._hashes.items()}


def file_of(folder: Path, name: str) -> Path:
    """Return the file of an array."""
    return folder / f"{name}.bin"


def load_arrays(folder: Path, about: dict[str, list[Any]]) -> Arrays:
    """Map the files that ``described`` told of. Raises OSError or ValueError for one that is not what it was."""
    arrays = {}
    for name, (kind, size, digest) in about.items():
        with file_of(folder, name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise ValueError(f"{name} is not what was written")
        arrays[name] = _mapped(folder, name, np.dtype(kind), size)
    return arrays


def _mapped(folder: Path, name: str, kind: np.dtype[Any], size: int) -> np.ndarray:
    """The file's content; a large one is read where it is used, and writing into it changes this process's copy."""
    if size * kind.itemsize < _LARGE:
        return np.fromfile(file_of(folder, name), kind, size)
    return np.memmap(file_of(folder, name), kind, mode="c", shape=(size,))
