"""Following a file of JSON lines while another process appends to it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from posttrain.errors import CheckpointError
from posttrain.runs.json_file import is_half, parse_line


class Tail:
    """Returns each complete line of a file once; a file that was replaced or cut back, as by a resume, is read anew.

    ``check`` returns what is wrong with a line, empty where nothing is.
    """

    def __init__(self, path: Path, check: Callable[[dict[str, Any]], str] = lambda line: ""):
        self.path, self._check = path, check
        self.restarted = False
        """Whether the last call of ``new`` found another file, so that earlier lines no longer hold."""
        self._place, self._lines = 0, 0
        self._file: tuple[int, int] | None = None

    def new(self) -> list[dict[str, Any]]:
        """Return the lines that were added since the last call; none while the file is missing.

        Raises CheckpointError for a damaged line, and for a file that cannot be read.
        """
        self.restarted = False
        try:
            with self.path.open("rb") as file:
                return self._read(file)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CheckpointError(f"'{self.path}' cannot be read ({error.strerror}). Move it away.") from None

    def _read(self, file: Any) -> list[dict[str, Any]]:
        facts = os.fstat(file.fileno())
        identity = (facts.st_dev, facts.st_ino)
        if self._file is not None and (identity != self._file or facts.st_size < self._place):
            self._place, self._lines, self.restarted = 0, 0, True
        self._file = identity
        file.seek(self._place)
        text = file.read()
        *whole, rest = text.split(b"\n")
        if not is_half(rest):
            whole.append(rest)
        self._place += sum(len(line) + 1 for line in whole)
        first, self._lines = self._lines + 1, self._lines + len(whole)
        return [parse_line(self.path, n, line, self._check) for n, line in enumerate(whole, first) if line.strip()]
