"""Follow a file of JSON lines while another process appends to it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class Tail:
    """Gives each whole line of a file once; a file that was replaced or cut back, as by a resume, is read anew."""

    def __init__(self, path: Path):
        self.path = path
        self.restarted = False
        """Whether the last call of ``new`` met another file, so that what was read before no longer holds."""
        self._place = 0
        self._file: tuple[int, int] | None = None

    def new(self) -> list[dict[str, Any]]:
        """Return the lines that were written since the last call; none while the file is missing."""
        self.restarted = False
        try:
            with self.path.open("rb") as file:
                return self._read(file)
        except OSError:
            return []

    def _read(self, file: Any) -> list[dict[str, Any]]:
        facts = os.fstat(file.fileno())
        identity = (facts.st_dev, facts.st_ino)
        if self._file is not None and (identity != self._file or facts.st_size < self._place):
            self._place, self.restarted = 0, True
        self._file = identity
        file.seek(self._place)
        text = file.read()
        whole = text.rpartition(b"\n")[0]  # the last line may be half written
        self._place += len(whole) + 1 if whole or text.startswith(b"\n") else 0
        return [line for line in map(_parse, whole.split(b"\n")) if line is not None]


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
