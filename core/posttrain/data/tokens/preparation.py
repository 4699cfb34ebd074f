"""Rows to examples: everything at once with a cache, or one after the other while training."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.contract.images import Image
from posttrain.contract.views import Example
from posttrain.data.convert import Row
from posttrain.data.rows import Rows
from posttrain.data.tokens import cache
from posttrain.data.tokens.images import with_pictures
from posttrain.data.tokens.lost_text import ADVICE, Loss
from posttrain.data.tokens.sequence_specs import SequenceSpec, examples_of, extra_columns
from posttrain.data.tokens.templates import Layout, Templates
from posttrain.data.tokens.token_arrays import Builder, Prepared
from posttrain.data.tokens.tokenise import Encoder, Tokens
from posttrain.data.tokens.truncate import CutsImage, cut_example
from posttrain.errors import DataError, SettingsError
from posttrain.network.image_reader import ImageReader, reader_of
from posttrain.settings import DataSettings

#: Rows that go through the tokenizer together.
_CHUNK = 256
#: Tokens of the longest row where neither the user nor the model sets a limit.
USUAL_LENGTH = 1024
#: Rows after which the share of those that lose something is known well enough to stop.
_ENOUGH = 1000
#: Rows among which streamed ones are shuffled.
SHUFFLE_BUFFER = 1000

__all__ = ["Prepared", "prepare", "stream"]


@dataclass
class Counts:
    """What happened to the rows."""

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
    """Sequences in which one token holds the prompt's end and the completion's start."""
    template_mismatches: int = 0
    """Sequences whose answer begins otherwise than the template's request for one."""
    plain_prompts: int = 0
    """Sequences with a prompt of plain text, where the chat template would add to it."""
    without_stop: int = 0
    """Sequences whose last trained token is not a stop token."""
    last_token: int | None = None
    """The last trained token of the first of them."""

    def drop(self, reason: str) -> None:
        """Count one row that gives no example."""
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
    """Longest sequence in tokens; for prompts, what is left beside the longest completion."""
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
    """Rows of one schema to tokens, chunk by chunk."""

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

    def run(self, located: Iterator[tuple[str, Row]], chunk: int) -> Iterator[tuple[int, Row, dict[str, list[Tokens]]]]:
        """Number of the row, its kept columns, and its sequences by role, for each row that gives an example."""
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
            if self.counts.rows >= _ENOUGH:
                self._refuse_losses()
        self._refuse_losses()

    def _loses(self, layouts: list[Layout], origin: str) -> bool:
        """Whether the chat template leaves something out of an example's answers, which is counted."""
        loss = next((layout.loss for layout in layouts if layout.loss), None)
        if loss is None:
            return False
        self.counts.drop(loss.reason())
        self.lost += 1
        self.first_loss = self.first_loss or (origin, loss)
        return True

    def _refuse_losses(self) -> None:
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
    """Tokenise all ``rows``, or take them from the cache in ``cache_dir`` (None: no cache).

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
    builder = Builder(steps=rows.schema == "stepwise")
    rendered: list[str] | None = [] if rows.schema == "prompt" else None
    for number, columns, roles in pipeline.run(rows.located(), _CHUNK):
        builder.add(number, roles)
        if rendered is not None:
            rendered.append(columns["prompt_text"])
    pipeline.require_some(rows.names)
    named = {str(at): [[one.place, one.digest, one.tokens] for one in own] for at, own in builder.images.items()}
    entry = cache.Entry(builder.arrays(), builder.roles, asdict(pipeline.counts), rendered, named)
    if folder is not None:
        cache.save(folder, entry)
    return _prepared(entry, rows, builder.images)


def _assembled(entry: cache.Entry, rows: Rows, settings: DataSettings, reader: ImageReader | None) -> Prepared | None:
    """What a cache held, with the pictures that the rows name; None where one of them is another than it was."""
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
    columns = [extra_columns(rows[row], rows.schema) for row in entry.arrays["rows"].tolist()]
    for row, text in zip(columns, entry.rendered or [], strict=False):
        row["prompt_text"] = text
    return Prepared(entry.arrays, entry.roles, columns, entry.report, images=images)


def stream(
    rows: Rows, tokenizer: Any, settings: DataSettings, stop_ids: set[int], seed: int, skip: int = 0
) -> Iterator[Example]:
    """Yield examples without end, passing over ``rows`` again and again.

    Each pass is shuffled within a buffer (unless ``settings.shuffle`` is off) by ``seed`` and the pass's number.
    ``skip`` examples are passed over, so that a run goes on where it was. Raises as ``prepare`` does.
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
    """A reservoir: each row leaves at a random moment after it came in."""
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
