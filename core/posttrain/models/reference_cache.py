"""Store of a reference's log-probs by content, in memory and in files that runs share."""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from posttrain.contract.views import Sequence

if TYPE_CHECKING:
    from posttrain.models.placement import Placement


#: Log-probs that are written before the next checkpoint, so that a crash loses little.
WRITE_AT = 2**20


_KEY_BYTES = 16


class ReferenceCache:
    """Log-probs by content: in memory, and in files of ``folder`` unless that is None.

    A file never changes: each write adds one, named by its own digest, so concurrent runs cannot disturb each other,
    and a damaged one is detected, removed and noted in ``notes``.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder
        self.notes: list[str] = []
        self._scope = b"training"
        self._values: dict[bytes, np.ndarray] = {}  # (t,) each
        self._new: dict[bytes, np.ndarray] = {}
        """Computed by this rank since the last ``exchange``."""
        self._unsaved: dict[bytes, np.ndarray] = {}
        """Known to every rank, not yet in a file."""
        self._waiting = 0
        for file in sorted(folder.glob("*.safetensors")) if folder is not None else ():
            self._read(file)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, sequence: Sequence) -> bool:
        return self._key(sequence) in self._values

    def logps(self, sequences: list[Sequence], compute: Callable[[list[Sequence]], Tensor]) -> Tensor:
        """Return log-probs ``(n,)`` of the trained tokens of all ``sequences``, on the CPU.

        ``compute`` is called once for all unknown sequences, or not at all.
        """
        keys = [self._key(sequence) for sequence in sequences]
        found = [self._values.get(key) for key in keys]  # (t,) each
        missing = [place for place, values in enumerate(found) if values is None]
        if missing:
            asked = [sequences[place] for place in missing]
            flat = compute(asked).detach().cpu()  # (m,)
            for place, part in zip(missing, flat.split([s.count for s in asked]), strict=True):
                found[place] = part.numpy()
                self._new.setdefault(keys[place], part.numpy())
                self._values.setdefault(keys[place], part.numpy())
        return torch.from_numpy(np.concatenate([values for values in found if values is not None]))

    @contextmanager
    def evaluation_scope(self) -> Iterator[None]:
        """Keep values of the block apart, so that an evaluation changes no bit of the training (D3)."""
        self._scope = b"evaluation"
        try:
            yield
        finally:
            self._scope = b"training"

    def exchange(self, strategy: Placement) -> None:
        """Give every rank the values that each has computed since the last call. All ranks call it together."""
        everyone: dict[bytes, np.ndarray] = {}
        for key, values in strategy.gather(list(self._new.items())):
            everyone.setdefault(key, values)
        self._new.clear()
        self._values.update(everyone)  # where two ranks computed the same row, all use the same numbers
        self._unsaved.update(everyone)
        self._waiting += sum(values.size for values in everyone.values())
        if self._waiting >= WRITE_AT:
            self.write()

    def write(self) -> None:
        """Write values that are in no file to a new one. On failure they stay in memory and ``notes`` says so."""
        self._waiting = 0
        if self.folder is None or not self._unsaved:
            return
        if int(os.environ.get("LOCAL_RANK", "0")) == 0:  # all ranks of a machine would write the same file
            try:
                _write(self.folder, save(_packed(self._unsaved)))
            except OSError as error:
                reason = error.strerror or str(error)
                self.notes.append(f"reference log-probs: '{self.folder}' cannot be written ({reason}).")
                self.folder = None
                return
        self._unsaved = {}

    def saved(self) -> dict[str, Tensor]:
        """Return the values in no file, for a checkpoint."""
        return _packed(self._unsaved) if self._unsaved else {}

    def restore(self, saved: dict[str, Tensor]) -> None:
        """Restore the values from ``saved``."""
        found = _unpacked(saved) if saved else {}
        self._values.update(found)
        self._unsaved.update(found)

    def _key(self, sequence: Sequence) -> bytes:
        digest = hashlib.blake2b(digest_size=_KEY_BYTES, person=self._scope)
        digest.update(len(sequence).to_bytes(8, "little"))
        digest.update(sequence.content.numpy().astype("<i8", copy=False).tobytes())
        digest.update(np.packbits(sequence.trained.numpy()).tobytes())
        if sequence.breaks:
            digest.update(repr(sequence.breaks).encode())
        return digest.digest()

    def _read(self, file: Path) -> None:
        try:
            with file.open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
            if found != file.stem:
                raise ValueError("the bytes are not those that were written")
            self._values |= _unpacked(load_file(file))
        except FileNotFoundError:
            return  # another run has just removed it
        except (OSError, ValueError, KeyError, SafetensorError):
            with contextlib.suppress(OSError):
                file.unlink()
            self.notes.append(f"reference log-probs: '{file}' is damaged; its rows are computed again.")


def _packed(values: dict[bytes, np.ndarray]) -> dict[str, Tensor]:
    """Return keys ``(S, 16)``, end of each sequence's values ``(S,)``, and all values ``(N,)``."""
    keys = np.frombuffer(b"".join(values), dtype=np.uint8).reshape(-1, _KEY_BYTES).copy()
    ends = np.cumsum([one.size for one in values.values()], dtype=np.int64)
    flat = np.concatenate(list(values.values()))
    return {"keys": torch.from_numpy(keys), "ends": torch.from_numpy(ends), "values": torch.from_numpy(flat)}


def _unpacked(tensors: dict[str, Tensor]) -> dict[bytes, np.ndarray]:
    keys, flat = tensors["keys"].numpy(), tensors["values"].numpy()
    parts = np.split(flat, tensors["ends"].numpy()[:-1])
    return {key.tobytes(): part for key, part in zip(keys, parts, strict=True)}


def _write(folder: Path, content: bytes) -> None:
    """Write a temporary file and rename it: a reader sees the whole file or none."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".writing-{uuid.uuid4().hex}"
    try:
        aside.write_bytes(content)
        os.replace(aside, folder / f"{hashlib.sha256(content).hexdigest()}.safetensors")
    finally:
        aside.unlink(missing_ok=True)
