"""Rows of a large file, kept on disk instead of in memory."""

from __future__ import annotations

import json
import os
import tempfile
from array import array
from collections.abc import Sequence
from typing import Any, overload

from posttrain.errors import DataError

#: Bytes of data files above which rows are kept on disk: as Python objects they take three to five times as much.
LARGE = 64 * 2**20
#: Kinds of files whose values are all JSON, so that reading back gives the same values.
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")
#: Bytes that wait before they are written.
_BUFFER = 2**20


class RowFile(Sequence[dict[str, Any]]):
    """A list of rows in a file without a name, which goes with the process. Rows can be appended and read, by any fork.

    ``order`` are the numbers of the rows in the file [all, in the order in which they were appended].
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the last list that reads it
        self._starts = array("Q", [0])
        self._waiting = bytearray()
        self._order: array[int] | None = None

    def append(self, row: dict[str, Any]) -> None:
        """Add a row of JSON values. Raises DataError where the disk takes no more."""
        text = json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass")
        self._waiting += text
        self._starts.append(self._starts[-1] + len(text))
        if len(self._waiting) >= _BUFFER:
            self.flush()

    def flush(self) -> None:
        """Write what waits, so that forks of this process can read it too. Raises DataError as ``append``."""
        try:
            self._file.write(self._waiting)
            self._file.flush()
        except OSError as error:
            raise DataError(
                f"The rows of large files are kept in '{tempfile.gettempdir()}', which takes no more "
                f"({error.strerror}). Make room there, or name another folder: TMPDIR=FOLDER"
            ) from None
        self._waiting.clear()

    def chosen(self, indices: Sequence[int]) -> RowFile:
        """Return the rows at ``indices``, in that order, from the same file."""
        self.flush()
        other = object.__new__(RowFile)
        other._file, other._starts, other._waiting = self._file, self._starts, bytearray()
        other._order = array("Q", indices if self._order is None else (self._order[index] for index in indices))
        return other

    def __len__(self) -> int:
        return len(self._starts) - 1 if self._order is None else len(self._order)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> Any:
        """Read one row, or several."""
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        place = range(len(self))[index]
        number = place if self._order is None else self._order[place]
        if self._waiting:
            self.flush()
        first, end = self._starts[number], self._starts[number + 1]
        text = os.pread(self._file.fileno(), end - first, first)
        return json.loads(text.decode("utf-8", "surrogatepass"))
