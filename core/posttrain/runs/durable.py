"""Files that survive a kill or a power cut: written aside, flushed to the disk, renamed into place."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from posttrain.errors import PosttrainError, RunFailed

#: How libraries that write files by themselves report that the system refused.
_WRITE_FAULTS = ("PytorchStreamWriter", "file write failed", "I/O error", "os error", "No space left", "Read-only file")


def flush(path: Path) -> None:
    """Flush one file, or the list of names of one folder, to the disk."""
    folder = path.is_dir()
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if not folder or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EBADF):
            raise  # some systems keep no folder open, and some disks flush none


def flush_tree(folder: Path) -> None:
    """Flush every file and folder below ``folder``, and ``folder`` itself."""
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            flush(Path(root) / name)
        flush(Path(root))


def replace_text(path: Path, text: str) -> None:
    """Replace the content of a file: a reader, or a kill at any moment, meets the old text or the new one."""
    aside = path.with_name(f".{path.name}.tmp")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    flush(path.parent)


def put_folder(aside: Path, final: Path) -> None:
    """Rename a finished folder into place. An older ``final`` makes room, and is deleted after its successor stands."""
    flush_tree(aside)
    old = final.with_name(f".{final.name}.old")
    if final.exists():
        remove(old)
        os.rename(final, old)
    os.rename(aside, final)
    flush(final.parent)
    remove(old)


def recover_folder(final: Path) -> None:
    """Undo the half of ``put_folder`` that a kill has left: an older folder moves back where no newer one stands."""
    old = final.with_name(f".{final.name}.old")
    if old.is_dir() and not final.exists():
        os.rename(old, final)


def remove(path: Path) -> None:
    """Delete a file, a folder, or a symbolic link without what it points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def refusal(error: BaseException) -> str | None:
    """Return why the system refused to write where ``error`` says so; None for any other error."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.strerror or type(error).__name__
    causes: list[BaseException] = [cause for cause, _ in getattr(error, "failures", {}).values()]
    for cause in [*causes, error]:
        if isinstance(cause, OSError) and cause.errno is not None:
            return cause.strerror or type(cause).__name__
        if any(word in str(cause) for word in _WRITE_FAULTS):
            return str(cause).strip().splitlines()[0]
    return None


@contextlib.contextmanager
def writing(what: str, advice: str) -> Iterator[None]:
    """Turn a write that the system refuses into one line. Raises RunFailed: ``what``, the reason, ``advice``."""
    try:
        yield
    except Exception as error:  # SafetensorError, CheckpointException and OSError have no other base in common
        reason = None if isinstance(error, PosttrainError) else refusal(error)
        if reason is None:
            raise
        raise RunFailed(f"{what} cannot be written: {reason}. {advice}") from None
