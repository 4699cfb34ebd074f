"""A frozen reference's log-probs over a fixed dataset: computed when first needed, kept, and read by later runs.

Values are found by content (tokens and which of them are trained), in a folder named by everything else that decides
them: the reference's weights, their type, the arithmetic, the layout, this code. A later run whose rows are all there
needs no second model. A cached value may differ in its last bits from one computed anew: the reference ran beside
other rows then. Within a run nothing depends on that: the rows of the first epoch are computed exactly as without a
cache, and a resumed run finds the values that the interrupted one used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

import posttrain
from posttrain.demo.made import place_of
from posttrain.engine.evaluate import HeldOutLoss
from posttrain.engine.forward import sequences_of
from posttrain.engine.head import Request
from posttrain.engine.source import Offline
from posttrain.models.identity import weights_identity
from posttrain.models.load import choose_dtype
from posttrain.models.reference import Reference
from posttrain.views import Example, Sequence

if TYPE_CHECKING:
    from posttrain.engine.run import Run
    from posttrain.strategies.protocol import Strategy

#: Log-probs that wait for the next checkpoint before they are written anyway, so that a crash loses little.
WRITE_AT = 2**20
#: Files of the engine that decide a log-prob.
_CODE = (
    *("attention.py", "forward.py", "head.py", "layout.py", "segments.py", "varlen.py", "reference_cache.py"),
    "../models/head.py",
)
_KEY_BYTES = 16


class ReferenceCache:
    """Log-probs by content: in memory, and in files of ``folder`` where that is not None.

    A file is never changed: each write adds one, named by its own digest, so runs at the same time cannot disturb
    each other, and one that is damaged is noticed, removed and noted in ``notes``.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder
        self.notes: list[str] = []
        self._scope = b"training"
        self._values: dict[bytes, np.ndarray] = {}  # (t,) each
        self._new: dict[bytes, np.ndarray] = {}
        """Computed by this rank since the last ``exchange``."""
        self._unsaved: dict[bytes, np.ndarray] = {}
        """Known to every rank, in no file yet."""
        self._waiting = 0
        for file in sorted(folder.glob("*.safetensors")) if folder is not None else ():
            self._read(file)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, sequence: Sequence) -> bool:
        return self._key(sequence) in self._values

    def logps(self, sequences: list[Sequence], compute: Callable[[list[Sequence]], Tensor]) -> Tensor:
        """Log-probs ``(n,)`` of the trained tokens of all ``sequences``, on the CPU.

        ``compute`` gives those of the sequences that are not known, all in one call, or is not called at all.
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
    def asked_by_evaluation(self) -> Iterator[None]:
        """Within the block values are kept apart, so that an evaluation moves no bit of the training (D3)."""
        self._scope = b"evaluation"
        try:
            yield
        finally:
            self._scope = b"training"

    def exchange(self, strategy: Strategy) -> None:
        """Give every rank what each has computed since the last call. All ranks call it together."""
        everyone: dict[bytes, np.ndarray] = {}
        for key, values in strategy.gather(list(self._new.items())):
            everyone.setdefault(key, values)
        self._new.clear()
        self._values.update(everyone)  # where two ranks computed the same row, all go on with the same numbers
        self._unsaved.update(everyone)
        self._waiting += sum(values.size for values in everyone.values())
        if self._waiting >= WRITE_AT:
            self.write()

    def write(self) -> None:
        """Put what is in no file yet into one. Where that fails, the values stay in memory and ``notes`` says so."""
        self._waiting = 0
        if self.folder is None or not self._unsaved:
            return
        if int(os.environ.get("LOCAL_RANK", "0")) == 0:  # the ranks of one machine would write the same file
            try:
                _write(self.folder, save(_packed(self._unsaved)))
            except OSError as error:
                reason = error.strerror or str(error)
                self.notes.append(f"reference log-probs: '{self.folder}' cannot be written ({reason}).")
                self.folder = None
                return
        self._unsaved = {}

    def saved(self) -> dict[str, Tensor]:
        """What a checkpoint must keep: values that are in no file."""
        return _packed(self._unsaved) if self._unsaved else {}

    def restore(self, saved: dict[str, Tensor]) -> None:
        """Undo ``saved``."""
        found = _unpacked(saved) if saved else {}
        self._values.update(found)
        self._unsaved.update(found)

    def _key(self, sequence: Sequence) -> bytes:
        digest = hashlib.blake2b(digest_size=_KEY_BYTES, person=self._scope)
        digest.update(len(sequence).to_bytes(8, "little"))
        digest.update(sequence.ids.numpy().astype("<i8", copy=False).tobytes())
        digest.update(np.packbits(sequence.trained.numpy()).tobytes())
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
    """Keys ``(S, 16)``, end of each sequence's values ``(S,)``, and all values ``(N,)``."""
    keys = np.frombuffer(b"".join(values), dtype=np.uint8).reshape(-1, _KEY_BYTES).copy()
    ends = np.cumsum([one.size for one in values.values()], dtype=np.int64)
    flat = np.concatenate(list(values.values()))
    return {"keys": torch.from_numpy(keys), "ends": torch.from_numpy(ends), "values": torch.from_numpy(flat)}


def _unpacked(tensors: dict[str, Tensor]) -> dict[bytes, np.ndarray]:
    keys, flat = tensors["keys"].numpy(), tensors["values"].numpy()
    parts = np.split(flat, tensors["ends"].numpy()[:-1])
    return {key.tobytes(): part for key, part in zip(keys, parts, strict=True)}


def _write(folder: Path, content: bytes) -> None:
    """Write aside and rename: a reader sees the whole file or none."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".writing-{uuid.uuid4().hex}"
    try:
        aside.write_bytes(content)
        os.replace(aside, folder / f"{hashlib.sha256(content).hexdigest()}.safetensors")
    finally:
        aside.unlink(missing_ok=True)


def begin_reference(run: Run, in_memory: bool, folder: Path | None) -> list[str]:
    """Give the run's reference its cache, and its model unless every row is known already; returns lines for the log.

    ``in_memory``: the policy was handed over as an object, so its weights have no name. ``folder`` holds the caches of
    all models, None for no files. Only a fixed dataset has a cache: rows of a stream or a sampler do not come back.
    """
    reference, settings = run.reference, run.settings
    if not isinstance(reference, Reference):
        return []
    notes: list[str] = []
    if settings.reference_cache and isinstance(run.source, Offline):
        weights = settings.reference_model or (None if in_memory else settings.model)
        name = None if folder is None or weights is None else _name(run, weights)
        reference.cache = ReferenceCache(None if folder is None or name is None else folder / name)
        if reference.cache.folder is not None:
            known, wanted = _coverage(run, reference.cache)
            notes = [*reference.cache.notes, f"reference log-probs: {known} of {wanted} rows from the cache"]
            reference.cache.notes.clear()
            if known == wanted:
                return notes  # should a method ask for more, the model is loaded then
        if reference.later is not None and settings.reference_model is None and _reads_views_alone(run):
            return [
                *notes,
                "no second model: the policy itself is run over the rows before its first update",
            ]
    reference.begin(same=settings.reference_model is None)
    return notes


def _reads_views_alone(run: Run) -> bool:
    """Whether the method asks nothing of the reference but log-probs of the rows themselves."""
    method = run.method
    more = (("posttrain_token_statistics", "reference_logits"), ("posttrain_annotate", "models"))
    return not any(method.has(hook) and method.takes(hook, argument) for hook, argument in more)


def fill_reference(run: Run) -> None:
    """Before the first update, run the policy over all rows for the reference that it still is.

    So no second model is ever in memory. Rows go through in the order and the company that training gives them.
    """
    reference, source = run.reference, run.source
    if not isinstance(reference, Reference) or reference.cache is None:
        return
    if reference.later is None or reference.model is not None:
        return
    if run.step or not isinstance(source, Offline) or run.settings.reference_model or not _reads_views_alone(run):
        return
    reference.is_policy = True
    try:
        for number in range(min(run.total, source.order.per_epoch)):
            _run_over(run, run.strategy.share(source.examples(number)))
        if isinstance(run.evaluation, HeldOutLoss):
            held_out = [run.evaluation.data[index] for index in range(run.evaluation.count)]
            with reference.cache.asked_by_evaluation():
                _run_over(run, run.strategy.share(held_out))
    finally:
        reference.is_policy = False


def _run_over(run: Run, examples: list[Example]) -> None:
    assert run.reference is not None
    assert run.reference.cache is not None
    request = Request(run.head_chunk, run.temperature)
    for micro, _ in run.passes(examples):
        with run.autocast():
            run.reference.results(sequences_of(micro) if micro else [], request)
    run.reference.cache.exchange(run.strategy)


def _name(run: Run, weights: str) -> str | None:
    """Name of the folder for this reference in this run's arithmetic; None where the weights cannot be identified."""
    identity = weights_identity(place_of(weights, run.settings))
    if identity is None:
        return None
    settings, device = run.settings, run.policy.device
    with run.autocast():
        autocast = torch.is_autocast_enabled(device.type)
    facts = {
        "weights": identity,
        "dtype": str(choose_dtype(settings, device)),
        "quantize": settings.quantize,
        "autocast": autocast,
        "device": device.type,
        "attention": [settings.attention, run.policy.inner.config._attn_implementation],
        "liger": settings.liger,
        "layout": [run.policy.packed, run.policy.shared],
        "temperature": run.temperature,
        "versions": [posttrain.__version__, transformers.__version__, torch.__version__],
        "code": _code(),
    }
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


@cache
def _code() -> str:
    here = Path(__file__).parent
    return hashlib.sha256(b"".join((here / name).read_bytes() for name in _CODE)).hexdigest()


def _coverage(run: Run, known: ReferenceCache) -> tuple[int, int]:
    """How many of the rows that the run will train or evaluate on are known, and how many there are."""
    source = run.source
    assert isinstance(source, Offline)
    steps = range(min(run.total, source.order.per_epoch))
    train = sorted({index for number in steps for index in source.order.at(number)})
    held_out = range(run.evaluation.count) if isinstance(run.evaluation, HeldOutLoss) else range(0)
    if not len(known):
        return 0, len(train) + len(held_out)
    covered = sum(_all_in(known, source.data[index]) for index in train)
    with known.asked_by_evaluation():
        covered += sum(_all_in(known, run.evaluation.data[index]) for index in held_out)
    return covered, len(train) + len(held_out)


def _all_in(known: ReferenceCache, example: Example) -> bool:
    return all(sequence in known for sequence in sequences_of([example]))


def kept_in_checkpoint(run: Run) -> dict[str, Any]:
    """Write what is known to the cache's folder; what has none goes into the checkpoint."""
    known = run.reference.cache if run.reference is not None else None
    if known is None:
        return {}
    known.write()
    for note in known.notes:
        run.directory.event("reference-cache", "warning", note)
    known.notes.clear()
    return known.saved()


def restore_kept(run: Run, saved: dict[str, Any]) -> None:
    """Undo ``kept_in_checkpoint``."""
    if run.reference is not None and run.reference.cache is not None:
        run.reference.cache.restore(saved)
