"""Folder of the adapters that a vLLM worker receives from a trainer: private to the user, with checked names."""

from __future__ import annotations

import os
import re
import stat
import tempfile
from pathlib import Path

#: Adapter names of a trainer: words, the run's token, a version.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}-[0-9]{1,18}")


def adapter_folder(name: str) -> Path:
    """Return the folder of the adapter ``name``, the same for every worker of this user on this machine.

    Raises ValueError for a name that no trainer gives, and where another user owns the folder.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"adapter name {name[:80]!r} is not letters, digits, '-' and '_' that end in -VERSION")
    return private_folder(Path(tempfile.gettempdir()) / f"posttrain-adapters-{os.getuid()}") / name


def private_folder(path: Path) -> Path:
    """Return ``path``, created where it is missing, as a folder that only its owner can enter. Raises ValueError."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise ValueError(
                f"'{path}' is not a folder that user {os.getuid()} alone can enter. Remove it, or set TMPDIR to "
                "another place."
            ) from None
    return path
