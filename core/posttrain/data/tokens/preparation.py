"""Tokenisation of rows into examples: all at once with a cache, or one by one during training."""

from __future__ import annotations

import copy
import random
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.contract.images import Image
from posttrain.contract.views import Example
from posttrain.data.convert import Row
from posttrain.data.rows import Rows
from posttrain.data.tokens import cache
from posttrain.data.tokens.array_files import Joined
from posttrain.data.tokens.images import with_pictures
from posttrain.data.tokens.lost_text import ADVICE, Loss
from posttrain.data.tokens.processes import over_parts, usual_processes
from posttrain.data.tokens.sequence_specs import SequenceSpec, examples_of, extra_columns
from posttrain.data.tokens.templates import Layout, Templates
from posttrain.data.tokens.token_arrays import Builder, Columns, Prepared
from posttrain.data.tokens.tokenise import Encoder, Tokens
from posttrain.data.tokens.truncate import CutsImage, cut_example
from posttrain.errors import DataError, SettingsError
from posttrain.network.image_reader import ImageReader, reader_of
from posttrain.settings import DataSettings

#: Rows that go through the tokenizer together, and rows that one process takes at a time.
_CHUNK, _PART = 256, 1024
#: Rows from which several processes pay, and a faster tokenizer.
_MANY = 4096
#: Tokens of the longest row where neither the user nor the model sets a limit.
USUAL_LENGTH = 1024
#: Rows after which the share of rows with losses is known well enough to stop.
_ENOUGH = 1000
#: Size of the shuffle buffer of streamed rows.
SHUFFLE_BUFFER = 1000

__all__ = ["Prepared", "prepare", "stream"]


#: Counts of sequences about which a user is told.
_PER_SEQUENCE = ("boundary_merges", "template_mismatches", "plain_prompts", "without_stop")


@dataclass
class Counts:
    """Counts of rows by outcome."""

    rows: int = 0
    examples: int = 0
    truncated: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    """Reason -> rows."""
    tokens: int = 0
    trained_tokens: int = 0
    longest: int = 0
    """Tokens of the longest sequence, after truncation."""
    boundary_merges: int = 0
    """Sequences in which one token spans the prompt's end and the completion's start."""
    template_mismatches: int = 0
    """Sequences whose answer begins unlike the template's request for one."""
    plain_prompts: int = 0
    """Sequences with a plain-text prompt, to which the chat template would add text."""
    without_stop: int = 0
    """Sequences whose last trained token is not a stop token."""
    last_token: int | None = None
    """Last trained token of the first of them."""

    def join(self, other: Counts) -> None:
        """Add the counts of later rows."""
        for name in ("rows", "examples", "truncated", "tokens", "trained_tokens", *_PER_SEQUENCE):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.longest = max(self.longest, other.longest)
        self.last_token = other.last_token if self.last_token is None else self.last_token
        for reason, count in other.dropped.items():
            self.dropped[reason] = self.dropped.get(reason, 0) + count

    def drop(self, reason: str) -> None:
        """Count one row without an example."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    def add(self, sequences: list[Tokens]) -> None:
        """Count one example."""
        self.examples += 1
        for tokens in sequences:
            self.tokens += len(tokens.ids)
            self.trained_tokens += tokens.count
            self.longest = max(self.longest, len(tokens.ids))
            self.boundary_merges += tokens.merged
            self.template_mismatches += tokens.mismatch
            if tokens.count and not tokens.stops:
                self.without_stop += 1
                self.last_token = tokens.last if self.last_token is None else self.last_token


def row_limit(settings: DataSettings, tokenizer: Any, schema: str) -> int:
    """Return the longest sequence in tokens; for prompts, what the longest completion leaves."""
    limit = settings.max_length
    if limit is None:
        limit = min(USUAL_LENGTH, int(getattr(tokenizer, "model_max_length", USUAL_LENGTH)))
    if limit < 2:
        raise SettingsError(f"max-length is {limit}, expected at least 2 tokens.")
    if schema != "prompt":
        return limit
    new = settings.max_new_tokens
    if new >= limit:
        raise SettingsError(
            f"max-length {limit} leaves no room for a prompt beside max-new-tokens {new}. "
            f"Raise --max-length above {new}, or lower --max-new-tokens."
        )
    return limit - new


class Pipeline:
    """Tokenises rows of one schema, chunk by chunk."""

    def __init__(self, rows: Rows, tokenizer: Any, settings: DataSettings, stop_ids: set[int]):
        self.schema = rows.schema
        self.roles = rows.roles
        self.settings = settings
        self.templates = Templates(tokenizer, settings)
        self.encoder = Encoder(tokenizer, stop_ids)
        self.limit = row_limit(settings, tokenizer, rows.schema)
        self.counts = Counts()
        self.lost = 0
        self.first_loss: tuple[str, Loss] | None = None

    def run(
        self, located: Iterator[tuple[str, Row]], chunk: int, judges: bool = True
    ) -> Iterator[tuple[int, Row, dict[str, list[Tokens]]]]:
        """Yield number of the row, its kept columns, and its sequences by role, for each row that gives an example.

        ``judges``: raise DataError as soon as the chat template is known to lose something of too many rows.
        """
        numbered = enumerate(located)
        while part := list(islice(numbered, chunk)):
            self.counts.rows += len(part)
            planned = [
                (number, origin, row, roles)
                for number, (origin, row) in part
                for roles in examples_of(row, self.schema, origin, self.settings, self.roles, self.templates.reader)
            ]
            layouts = [
                self.templates.layout(draft, origin) for _, origin, _, roles in planned for draft in _flat(roles)
            ]
            if self.templates.adds_text:
                self.counts.plain_prompts += sum(layout.plain and layout.boundary > 0 for layout in layouts)
            encoded = iter(zip(layouts, self.encoder.encode(layouts), strict=True))
            for number, origin, row, roles in planned:
                done = list(islice(encoded, len(_flat(roles))))
                if self._loses([layout for layout, _ in done], origin):
                    continue
                kept = self._fitted([tokens for _, tokens in done], origin)
                if kept is None:
                    continue
                columns = extra_columns(row, self.schema)
                if self.schema == "prompt":
                    columns["prompt_text"] = done[0][0].text
                self.counts.add(kept)
                yield number, columns, _regrouped(roles, kept)
            if judges and self.counts.rows >= _ENOUGH:
                self.refuse_losses()
        if judges:
            self.refuse_losses()

    def again(self) -> Pipeline:
        """Return a pipeline for other rows of the same data, which has counted nothing."""
        other = copy.copy(self)
        other.counts, other.lost, other.first_loss = Counts(), 0, None
        return other

    def join(self, counts: Counts, lost: int, first_loss: tuple[str, Loss] | None) -> None:
        """Add what another pipeline counted in later rows. Raises DataError as ``run`` does."""
        self.counts.join(counts)
        self.lost += lost
        self.first_loss = self.first_loss or first_loss
        if self.counts.rows >= _ENOUGH:
            self.refuse_losses()

    def _loses(self, layouts: list[Layout], origin: str) -> bool:
        """Return whether the chat template loses part of an example's answers, and count it."""
        loss = next((layout.loss for layout in layouts if layout.loss), None)
        if loss is None:
            return False
        self.counts.drop(loss.reason())
        self.lost += 1
        self.first_loss = self.first_loss or (origin, loss)
        return True

    def refuse_losses(self) -> None:
        """Raise DataError if the chat template loses something of more rows than the settings allow."""
        limit = self.settings.max_lost
        examples = self.lost + self.counts.examples
        if self.first_loss is None or self.lost <= limit * examples:
            return
        origin, loss = self.first_loss
        raise DataError(
            f"{origin}: the chat template {loss.describe()}. {self.lost} of {examples} examples lose something in "
            f"this way, more than the share of {limit:g} that max-lost allows. {ADVICE[loss.kind]}."
        )

    def _fitted(self, sequences: list[Tokens], origin: str) -> list[Tokens] | None:
        longest = max(len(tokens.ids) for tokens in sequences)
        if longest > self.limit:
            if self.settings.truncation == "error":
                raise DataError(
                    f"{origin}: has {longest} tokens, more than the {self.limit} that max-length allows. "
                    "Raise --max-length, or choose --truncation keep-prompt-end or drop."
                )
            if self.settings.truncation == "drop":
                self.counts.drop("too long")
                return None
            try:
                sequences = cut_example(sequences, self.limit)
            except CutsImage:
                raise DataError(
                    f"{origin}: has {longest} tokens with its images, more than the {self.limit} that max-length "
                    "allows, and a picture is not cut. Raise --max-length, lower --max-pixels, or choose --truncation "
                    "drop."
                ) from None
        if reason := self._worthless(sequences):
            self.counts.drop(reason)
            return None
        self.counts.truncated += longest > self.limit
        return sequences

    def _worthless(self, sequences: list[Tokens]) -> str | None:
        if self.schema == "prompt":
            return None if len(sequences[0].ids) else "no tokens"
        if any(not tokens.count for tokens in sequences):
            return "nothing to learn"
        if self.schema == "preference" and _equal(*sequences[:2]):
            return "chosen and rejected are the same tokens"
        marked = (tokens.trained[mark] for tokens in sequences for mark in tokens.marks)
        return "no end of a step" if self.schema == "stepwise" and not any(marked) else None

    def require_some(self, names: list[str]) -> None:
        """Raise DataError if every row was dropped."""
        if self.counts.examples:
            return
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.counts.dropped.items())
        raise DataError(
            f"{', '.join(names)}: none of {self.counts.rows} rows is left ({reasons}; the limit is "
            f"{self.limit} tokens). Raise --max-length."
        )


def _equal(first: Tokens, second: Tokens) -> bool:
    pictures = [[image.digest for image in one.images] for one in (first, second)]
    same = np.array_equal(first.ids, second.ids) and np.array_equal(first.trained, second.trained)
    return same and pictures[0] == pictures[1]


def _flat(roles: dict[str, list[SequenceSpec]]) -> list[SequenceSpec]:
    return [draft for several in roles.values() for draft in several]


def _regrouped(roles: dict[str, list[SequenceSpec]], sequences: list[Tokens]) -> dict[str, list[Tokens]]:
    remaining = iter(sequences)
    return {role: list(islice(remaining, len(several))) for role, several in roles.items()}


def prepare(rows: Rows, tokenizer: Any, settings: DataSettings, stop_ids: set[int], cache_dir: Path | None) -> Prepared:
    """Tokenise all ``rows``, or load them from the cache in ``cache_dir`` (None: no cache).

    ``stop_ids`` are the tokens that end an answer. The roles of the examples follow from the schema; columns that are
    not tokens are kept, online prompts also as ``prompt_text``. Raises DataError, ModelError or SettingsError.
    """
    if rows.streaming:
        raise SettingsError("streamed rows cannot be prepared before training. Leave --streaming off, or use stream().")
    pipeline = Pipeline(rows, tokenizer, settings, stop_ids)
    folder = None
    if cache_dir is not None and rows.fingerprint:
        template = pipeline.templates.source
        folder = cache_dir / cache.key(rows.fingerprint, rows.schema, tokenizer, template, settings, stop_ids)
        entry = cache.load(folder)
        found = None if entry is None else _assembled(entry, rows, settings, reader_of(tokenizer))
        if found is not None:
            return found
        shutil.rmtree(folder, ignore_errors=True)
    with ExitStack() as open_folder:
        aside = None if folder is None else open_folder.enter_context(cache.writing(folder))
        entry, images = _tokenise(rows, pipeline, aside)
        if folder is not None and aside is not None:
            cache.put(aside, folder, entry)
    return _prepared(entry, rows, images)


def _tokenise(rows: Rows, pipeline: Pipeline, folder: Path | None) -> tuple[cache.Entry, dict[int, tuple[Image, ...]]]:
    """All rows as arrays, in files of ``folder`` where there is one, part by part and in several processes."""
    parts = [range(first, min(first + _PART, len(rows))) for first in range(0, len(rows), _PART)]
    processes = pipeline.settings.data_processes or (usual_processes() if len(rows) >= _MANY else 1)
    if pipeline.templates.reader is not None:
        processes = 1  # pictures that a program hands over are not copied from process to process
    rows.flush()
    if len(rows) >= _MANY:
        pipeline.encoder.expect_many()
    images: dict[int, tuple[Image, ...]] = {}
    with Joined(folder) as joined:
        for counted, builder in over_parts(partial(_part, rows, pipeline), parts, processes):
            pipeline.join(*counted)
            images |= {joined.sequences + at: found for at, found in builder.images.items()}
            joined.append(builder.arrays(), builder.roles)
        pipeline.refuse_losses()
        pipeline.require_some(rows.names)
        arrays = joined.arrays()
    named = {str(at): [[one.place, one.digest, one.tokens] for one in own] for at, own in images.items()}
    return cache.Entry(arrays, joined.roles, asdict(pipeline.counts), named, joined.described()), images


def _part(
    rows: Rows, pipeline: Pipeline, numbers: range
) -> tuple[tuple[Counts, int, tuple[str, Loss] | None], Builder]:
    """What was counted in some rows, and their tokens."""
    own = pipeline.again()
    builder = Builder(steps=rows.schema == "stepwise", texts=rows.schema == "prompt")
    for number, columns, roles in own.run(rows.part(numbers), _CHUNK, judges=False):
        builder.add(numbers.start + number, roles, columns.get("prompt_text", ""))
    return (own.counts, own.lost, own.first_loss), builder


def _assembled(entry: cache.Entry, rows: Rows, settings: DataSettings, reader: ImageReader | None) -> Prepared | None:
    """Combine a cache entry with the images of the rows; None where one of them has changed."""
    images: dict[int, tuple[Image, ...]] = {}
    if entry.images and reader is not None:
        row_of = np.repeat(entry.arrays["rows"], np.diff(entry.arrays["examples"]))  # (S,)
        digests: dict[str, str] = {}
        for at, named in entry.images.items():
            row = int(row_of[int(at)])
            _, sources = with_pictures(rows[row], rows.origin(row), settings)
            images[int(at)] = tuple(Image(sources[p], digest, n, reader.token, p) for p, digest, n in named)
            for image in images[int(at)]:
                name = image.source if isinstance(image.source, str) else f"{row} {image.place}"
                if name not in digests:
                    digests[name] = reader.digest(image.source)
                if digests[name] != image.digest:
                    return None
    return _prepared(entry, rows, images)


def _prepared(entry: cache.Entry, rows: Rows, images: dict[int, tuple[Image, ...]]) -> Prepared:
    columns = Columns(rows.__getitem__, rows.schema, entry.arrays)
    return Prepared(entry.arrays, entry.roles, columns, entry.report, images=images)


def stream(
    rows: Rows, tokenizer: Any, settings: DataSettings, stop_ids: set[int], seed: int, skip: int = 0
) -> Iterator[Example]:
    """Yield examples endlessly, iterating over ``rows`` repeatedly.

    Each pass is shuffled within a buffer (unless ``settings.shuffle`` is off) by ``seed`` and the pass's number. The
    first ``skip`` examples are dropped, so that a run resumes where it was. Raises as ``prepare`` does.
    """
    return islice(_passes(rows, tokenizer, settings, stop_ids, seed), skip, None)


def _passes(rows: Rows, tokenizer: Any, settings: DataSettings, stop_ids: set[int], seed: int) -> Iterator[Example]:
    epoch = 0
    while True:
        pipeline = Pipeline(rows, tokenizer, settings, stop_ids)
        located = rows.located()
        if settings.shuffle:
            located = _mixed(located, random.Random(f"{seed} {epoch}"))
        for _, columns, roles in pipeline.run(located, chunk=16):
            yield _example(columns, roles, rows.schema == "stepwise")
        pipeline.require_some(rows.names)
        epoch += 1


def _example(columns: Row, roles: dict[str, list[Tokens]], steps: bool) -> Example:
    builder = Builder(steps)
    builder.add(0, roles)
    return Prepared(builder.arrays(), builder.roles, [columns], {}, np.zeros(1, np.int64), builder.images)[0]


def _mixed(located: Iterator[tuple[str, Row]], random_state: random.Random) -> Iterator[tuple[str, Row]]:
    """Shuffle within a reservoir: each row leaves at a random time after it entered."""
    waiting: list[tuple[str, Row]] = []
    for item in located:
        if len(waiting) < SHUFFLE_BUFFER:
            waiting.append(item)
            continue
        place = random_state.randrange(SHUFFLE_BUFFER)
        waiting[place], item = item, waiting[place]
        yield item
    random_state.shuffle(waiting)
    yield from waiting
