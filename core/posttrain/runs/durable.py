"""Writes that survive a kill or a power cut: to a temporary name, flushed to the disk, renamed into place."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from posttrain.errors import PosttrainError, RunFailed
from posttrain.runs.json_file import is_half

#: Texts by which libraries with their own file writers report that the system refused.
_WRITE_FAULTS = ("PytorchStreamWriter", "file write failed", "I/O error", "os error", "No space left", "Read-only file")


def flush(path: Path) -> None:
    """Flush one file, or the directory entries of one folder, to the disk."""
    folder = path.is_dir()
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if not folder or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EBADF):
            raise  # some systems open no folder, and some disks do not flush


def flush_tree(folder: Path) -> None:
    """Flush every file and folder below ``folder``, and ``folder`` itself."""
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            flush(Path(root) / name)
        flush(Path(root))


def replace_text(path: Path, text: str) -> None:
    """Replace the content of a file: a reader, or a kill at any moment, finds the old text or the new one."""
    aside = path.with_name(f".{path.name}.tmp")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    flush(path.parent)


def append_text(path: Path, text: str) -> None:
    """Append to a file all of ``text``, or nothing where the disk is full: half a line would spoil the next one."""
    with path.open("ab", buffering=0) as file:
        place = file.seek(0, os.SEEK_END)
        data = text.encode("utf-8", "surrogatepass")
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(place)
            raise


def cut_half_line(path: Path) -> None:
    """Cut what a killed writer left of its last line off a file of lines."""
    if not path.is_file():
        return
    with path.open("r+b") as file:
        data = file.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data) and is_half(data[whole:]):
            file.truncate(whole)
            os.fsync(file.fileno())


def put_folder(aside: Path, final: Path) -> None:
    """Rename a finished folder into place. An older ``final`` is moved aside, and deleted afterwards."""
    flush_tree(aside)
    old = final.with_name(f".{final.name}.old")
    if final.exists():
        remove(old)
        os.rename(final, old)
    os.rename(aside, final)
    flush(final.parent)
    remove(old)


def recover_folder(final: Path) -> None:
    """Undo half of ``put_folder`` after a kill: restore an older folder where no newer one is in place."""
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
    """Return the system's reason where ``error`` reports a refused write; None for any other error."""
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
    """Turn a refused write into one line. Raises RunFailed: ``what``, the reason, ``advice``."""
    try:
        yield
    except Exception as error:  # SafetensorError, CheckpointException and OSError have no other common base
        reason = None if isinstance(error, PosttrainError) else refusal(error)
        if reason is None:
            raise
        raise RunFailed(f"{what} cannot be written: {reason}. {advice}") from None
