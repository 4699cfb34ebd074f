"""Cached log-probs of a frozen reference over a fixed dataset: computed on first use, kept, and read by later runs.

Values are keyed by content (tokens and which of them are trained), in a folder named by everything else that decides
them: the reference's weights, their type, the arithmetic, the packing, this code. A later run whose rows are all there
needs no second model. A cached value may differ in its last bits from one computed anew, because the reference ran
beside other rows then. Within a run nothing depends on that: the rows of the first epoch are computed exactly as
without a cache, and a resumed run finds the values that the interrupted one used.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

import posttrain
from posttrain.contract.pad import sequences_of
from posttrain.contract.views import Example
from posttrain.example.made import resolve_example_model
from posttrain.models.device import choose_dtype
from posttrain.models.identity import weights_identity
from posttrain.models.reference import Reference
from posttrain.models.reference_cache import ReferenceCache
from posttrain.network.chunked_head import TokenQuery
from posttrain.training.evaluate import Evaluation, held_out_examples
from posttrain.training.source import Offline

if TYPE_CHECKING:
    from posttrain.runs.directory import RunDirectory
    from posttrain.training.run import Compute, Plan, Run


#: Source files that decide a log-prob.
_CODE = (
    *(
        "../network/attention.py",
        "../network/token_model.py",
        "../network/chunked_head.py",
        "../network/packing.py",
        "../network/segments.py",
        "../network/varlen.py",
        "reference_use.py",
    ),
    "../network/find_head.py",
    "../contract/pad.py",
    "../models/reference_cache.py",
)


def begin_reference(run: Run, in_memory: bool, folder: Path | None) -> list[str]:
    """Set up the reference's cache, and its model unless every row is cached; return lines for the log.

    ``in_memory``: the policy was passed as an object, so its weights have no name. ``folder`` holds the caches of all
    models, None for no files. Only a fixed dataset has a cache: rows of a stream or a sampler do not recur.
    """
    reference, settings = run.compute.reference, run.plan.settings
    if not isinstance(reference, Reference):
        return []
    notes: list[str] = []
    if settings.reference.reference_cache and isinstance(run.source, Offline):
        weights = settings.reference.reference_model or (None if in_memory else settings.model.model)
        name = None if folder is None or weights is None else _name(run.compute, weights)
        reference.cache = ReferenceCache(None if folder is None or name is None else folder / name)
        if reference.cache.folder is not None:
            known, wanted = _coverage(run.source, run.evaluation, run.progress.total, reference.cache)
            notes = [*reference.cache.notes, f"reference log-probs: {known} of {wanted} rows from the cache"]
            reference.cache.notes.clear()
            if known == wanted:
                return notes  # if a method needs more, the model is loaded then
        if reference.later is not None and settings.reference.reference_model is None and _reads_views_alone(run.plan):
            return [
                *notes,
                "no second model: the policy itself is run over the rows before its first update",
            ]
    reference.begin(same=settings.reference.reference_model is None)
    return notes


def _reads_views_alone(plan: Plan) -> bool:
    """Return whether the method needs only log-probs of the rows themselves from the reference."""
    method = plan.method
    more = (("posttrain_token_statistics", "reference_logits"), ("posttrain_annotate", "models"))
    return not any(method.has(hook) and method.takes(hook, argument) for hook, argument in more)


def fill_reference(run: Run) -> None:
    """Run the policy over all rows before the first update, while it still equals the reference.

    This avoids a second model in memory. Rows are batched exactly as in training, so the cached bits equal those
    computed without a cache.
    """
    reference, source = run.compute.reference, run.source
    if not isinstance(reference, Reference) or reference.cache is None:
        return
    if reference.later is None or reference.model is not None:
        return
    if (
        run.progress.step
        or not isinstance(source, Offline)
        or run.plan.settings.reference.reference_model
        or not _reads_views_alone(run.plan)
    ):
        return
    reference.is_policy = True
    try:
        for number in range(min(run.progress.total, source.order.per_epoch)):
            _run_over(run.compute, run.compute.strategy.scatter(source.examples(number)))
        if held_out := held_out_examples(run.evaluation):
            with reference.cache.evaluation_scope():
                _run_over(run.compute, run.compute.strategy.scatter(held_out))
    finally:
        reference.is_policy = False


def _run_over(compute: Compute, examples: list[Example]) -> None:
    assert compute.reference is not None
    assert compute.reference.cache is not None
    request = TokenQuery(compute.head_chunk, compute.temperature)
    for micro, _ in compute.iter_micro_batches(examples):
        with compute.autocast():
            compute.reference.results(sequences_of(micro) if micro else [], request)
    compute.reference.cache.exchange(compute.strategy)


def _name(compute: Compute, weights: str) -> str | None:
    """Return the cache folder's name for this reference and arithmetic; None where the weights cannot be identified."""
    identity = weights_identity(resolve_example_model(weights, compute.settings.model))
    if identity is None:
        return None
    settings, device = compute.settings, compute.policy.device
    with compute.autocast():
        autocast = torch.is_autocast_enabled(device.type)
    facts = {
        "weights": identity,
        "dtype": str(choose_dtype(settings.model, device)),
        "quantize": settings.model.quantize,
        "autocast": autocast,
        "device": device.type,
        "attention": [settings.model.attention, compute.policy.inner.config._attn_implementation],
        "kernels": [settings.model.liger, settings.model.compile],
        "layout": [compute.policy.packed, compute.policy.shared],
        "temperature": compute.temperature,
        "versions": [posttrain.__version__, transformers.__version__, torch.__version__],
        "code": _code(),
    }
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


@cache
def _code() -> str:
    here = Path(__file__).parent
    return hashlib.sha256(b"".join((here / name).read_bytes() for name in _CODE)).hexdigest()


def _coverage(source: Offline, evaluation: Evaluation | None, total: int, known: ReferenceCache) -> tuple[int, int]:
    """Count the cached rows among those that the run trains or evaluates on; return them and the number of all rows."""
    steps = range(min(total, source.order.per_epoch))
    train = sorted({index for number in steps for index in source.order.at(number)})
    held_out = held_out_examples(evaluation)
    if not len(known):
        return 0, len(train) + len(held_out)
    covered = sum(_all_in(known, source.data[index]) for index in train)
    with known.evaluation_scope():
        covered += sum(_all_in(known, example) for example in held_out)
    return covered, len(train) + len(held_out)


def _all_in(known: ReferenceCache, example: Example) -> bool:
    return all(sequence in known for sequence in sequences_of([example]))


def kept_in_checkpoint(compute: Compute, directory: RunDirectory) -> dict[str, Any]:
    """Write cached values to the cache's folder; return those of a cache without one for the checkpoint."""
    known = compute.reference.cache if compute.reference is not None else None
    if known is None:
        return {}
    known.write()
    for note in known.notes:
        directory.event("reference-cache", "warning", note)
    known.notes.clear()
    return known.saved()


def restore_kept(compute: Compute, saved: dict[str, Any]) -> None:
    """Undo ``kept_in_checkpoint``."""
    if compute.reference is not None and compute.reference.cache is not None:
        compute.reference.cache.restore(saved)
