"""Tokenisation of layouts: prompt and completion together, with tokens split by character positions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tokenizers import Encoding

from posttrain.contract.images import Image
from posttrain.data.tokens.fast_encoder import FastEncoder, FastEncoding
from posttrain.data.tokens.templates import Layout
from posttrain.errors import DataError, ModelError
from posttrain.network.image_reader import reader_of

_PROBE = "Hello world"
#: What of a tokenizer's class stands between a text and the tokenizer in Rust.
_ENCODING = ("__call__", "_encode_plus")


@dataclass
class Tokens:
    """One tokenised sequence of n tokens."""

    ids: np.ndarray  # (n,) int32
    trained: np.ndarray  # (n,) bool
    prompt: int
    """Number of tokens before the first one with completion text."""
    marks: list[int] = field(default_factory=list)
    """Index of the last token of each step."""
    labels: list[float] = field(default_factory=list)
    begins: bool = False
    """The first token is the tokenizer's beginning-of-sequence token."""
    merged: bool = False
    """A token has text of the prompt and of the completion."""
    mismatch: bool = False
    stops: bool = True
    """The last trained token is a stop token."""
    last: int | None = None
    """The last trained token, before truncation."""
    images: tuple[Image, ...] = ()
    """Images behind its placeholders, in order."""

    @property
    def count(self) -> int:
        """Number of trained tokens."""
        return int(np.count_nonzero(self.trained))


class Encoder:
    """Tokenises layouts. ``stop_ids`` are the tokens that end an answer; the end-of-sequence token is always one."""

    def __init__(self, tokenizer: Any, stop_ids: set[int]):
        self.tokenizer = tokenizer
        self.eos: int | None = tokenizer.eos_token_id
        self.bos: int | None = tokenizer.bos_token_id
        self.stop_ids = stop_ids | ({self.eos} if self.eos is not None else set())
        self.offsets = bool(getattr(tokenizer, "is_fast", False))
        self.direct = self.offsets and _calls_backend(type(tokenizer))
        self.fast: FastEncoder | None = None
        reader = reader_of(tokenizer)
        self.placeholder = None if reader is None else reader.token
        try:
            ids = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
        except Exception as error:  # the Rust side raises nothing more precise
            raise ModelError(
                f"The tokenizer ({type(tokenizer).__name__}) cannot encode {_PROBE!r}: {' '.join(str(error).split())}. "
                "Expected a tokenizer that takes any text: give it an unknown token, or use the model's own."
            ) from error
        if not ids:
            raise ModelError(
                f"the tokenizer ({type(tokenizer).__name__}) turns {_PROBE!r} into no token at all: it is broken or "
                "not the model's own. Check the tokenizer files beside the model."
            )

    def expect_many(self) -> None:
        """Prepare for many texts: what is made here takes a third of a second."""
        self.fast = FastEncoder.of(self.tokenizer) if self.direct else None

    def encode(self, layouts: list[Layout]) -> list[Tokens]:
        """Return the tokens of each layout, in order."""
        found: list[Tokens | None] = [None] * len(layouts)
        fast = {} if self.fast is None else self.fast.of_layouts(self.tokenizer, layouts)
        for place, encoding in fast.items():
            found[place] = self._tokens(layouts[place], encoding.ids, encoding)
        for plain in (True, False):
            left = ((at, layout) for at, layout in enumerate(layouts) if at not in fast and layout.text)
            places = [place for place, layout in left if layout.plain is plain]
            if not places:
                continue
            texts = [layouts[place].text for place in places]
            for place, (ids, offsets) in zip(places, self._encoded(texts, plain), strict=True):
                found[place] = self._tokens(layouts[place], ids, offsets)
        for place, layout in enumerate(layouts):
            if layout.given is not None:
                if self.placeholder is not None:
                    self._check_placeholders(layout, layout.given[0], self.placeholder)
                found[place] = self._given(*layout.given)
        return [tokens or Tokens(np.zeros(0, np.int32), np.zeros(0, bool), 0) for tokens in found]

    def _encoded(self, texts: list[str], plain: bool) -> Iterator[tuple[list[int], Any]]:
        """Yield the tokens of each text, and where they stand in it; special tokens are added to plain text alone.

        A tokenizer in Rust that calls it as its class does is asked directly: its class makes four lists of each text.
        """
        if self.direct:
            backend = self.tokenizer.backend_tokenizer
            backend.no_truncation()
            backend.no_padding()
            backend.encode_special_tokens = self.tokenizer.split_special_tokens
            for encoding in backend.encode_batch(texts, add_special_tokens=plain):
                yield encoding.ids, encoding.offsets if plain else encoding
            return
        encoded = self.tokenizer(
            texts,
            add_special_tokens=plain,
            return_offsets_mapping=self.offsets,
            truncation=False,
            padding=False,
            verbose=False,
        )
        offsets = encoded["offset_mapping"] if self.offsets else [None] * len(texts)
        yield from zip(encoded["input_ids"], offsets, strict=True)

    def _given(self, ids: list[int], learnt: list[int] | None) -> Tokens:
        """Wrap the tokens of a row unchanged."""
        trained = np.ones(len(ids), bool) if learnt is None else np.asarray(learnt, dtype=bool)
        trained[:1] = False  # nothing predicts the first token
        places = np.flatnonzero(trained)
        last = ids[places[-1]] if len(places) else None
        return Tokens(
            np.asarray(ids, dtype=np.int32),
            trained,
            int(places[0]) if learnt is not None and len(places) else 0,
            begins=ids[0] == self.bos,
            last=last,
            stops=last is None or last in self.stop_ids,
        )

    def _tokens(self, layout: Layout, ids: list[int], offsets: Any) -> Tokens:
        if layout.plain:
            ids, offsets = self._single_ends(ids, offsets)
        positions = _Positions(self, layout, ids, offsets)
        prompt = positions.first_with(layout.boundary)
        trained = np.zeros(len(ids), dtype=bool)
        for start, end in layout.spans:
            first, last = positions.first_with(start), positions.first_with(end)
            trained[first : last if layout.plain else self._stop_after(ids, first, last)] = True
        if layout.end:
            if self.eos is None:
                raise ModelError(
                    "the tokenizer has no end-of-sequence token to put behind plain-text completions. "
                    "Leave it off with: --no-end-of-sequence"
                )
            ids = [*ids, self.eos]
            trained = np.append(trained, True)
        if not layout.plain and layout.spans:
            ids = ids[: self._end(ids)]
            trained = trained[: len(ids)]
            ids, trained = self._opened(layout, ids, trained)
        trained[:1] = False  # nothing predicts the first token
        if self.placeholder is not None:
            self._check_placeholders(layout, ids, self.placeholder)
            trained[np.asarray(ids) == self.placeholder] = False  # an image is read, not written
        learnt = np.flatnonzero(trained)
        return Tokens(
            np.asarray(ids, dtype=np.int32),
            trained,
            prompt,
            marks=[positions.first_with(mark) - 1 for mark in layout.marks],
            labels=layout.labels,
            begins=bool(ids) and ids[0] == self.bos,
            merged=positions.merged(layout.boundary, prompt) if layout.spans and layout.boundary else False,
            mismatch=layout.mismatch,
            # A solution of steps ends with the mark of its last step.
            last=ids[learnt[-1]] if len(learnt) else None,
            stops=not len(learnt) or bool(layout.marks) or ids[learnt[-1]] in self.stop_ids,
            images=layout.images,
        )

    def _check_placeholders(self, layout: Layout, ids: list[int], placeholder: int) -> None:
        """Raise DataError where text contains the image placeholder token."""
        found, wanted = ids.count(placeholder), sum(image.tokens for image in layout.images)
        if found != wanted:
            raise DataError(
                f"A row's text has {found} tokens {self.tokenizer.convert_ids_to_tokens(placeholder)!r}, and its "
                f"{len(layout.images)} images take {wanted}. Expected no more than those: {layout.text[:60]!r}"
            )

    def _opened(self, layout: Layout, ids: list[int], trained: np.ndarray) -> tuple[list[int], np.ndarray]:
        """Append the opener of the next message as a trained token, if generation stops at it and nowhere before."""
        opener = self.tokenizer.convert_tokens_to_ids(layout.opener) if layout.opener else None
        if opener not in self.stop_ids or not trained[-1:].any() or ids[-1] in self.stop_ids:
            return ids, trained
        return [*ids, opener], np.append(trained, True)

    def _single_ends(self, ids: list[int], offsets: Any) -> tuple[list[int], Any]:
        """Remove an end that the tokenizer added, and a second beginning if the text has its own."""
        if offsets is not None and ids and ids[-1] == self.eos and offsets[-1][1] == 0:
            ids, offsets = ids[:-1], offsets[:-1]
        if len(ids) > 1 and self.bos is not None and ids[0] == ids[1] == self.bos != self.eos:
            ids, offsets = ids[1:], offsets[1:] if offsets is not None else None
        return ids, offsets

    def _blank(self, ids: list[int]) -> bool:
        return not self.tokenizer.decode(ids, skip_special_tokens=False).strip()

    def _stop_after(self, ids: list[int], first: int, last: int) -> int:
        """Return the end of a trained span, including its stop token, which may be outside it or before white space."""
        stops = [index for index in range(first, last) if ids[index] in self.stop_ids]
        if stops and self._blank(ids[stops[-1] + 1 : last]):
            return stops[-1] + 1
        for index in range(last, min(last + 3, len(ids))):
            if ids[index] in self.stop_ids:
                return index + 1
            if not self._blank([ids[index]]):
                break
        return last

    def _end(self, ids: list[int]) -> int:
        """Return the length without the white space that a template writes after the last stop token."""
        last = next((index for index in range(len(ids) - 1, -1, -1) if ids[index] in self.stop_ids), None)
        return last + 1 if last is not None and self._blank(ids[last + 1 :]) else len(ids)


def _calls_backend(kind: type) -> bool:
    """Tell whether a class of tokenizers encodes as transformers' own class does, with nothing before or after."""
    from transformers import PreTrainedTokenizerFast  # imported already, where there is a tokenizer of its kind

    own = [getattr(PreTrainedTokenizerFast, name, None) for name in _ENCODING]
    return None not in own and [getattr(kind, name, None) for name in _ENCODING] == own


class _Positions:
    """Maps characters to token indices: by offsets, or by tokenising the text before the position."""

    def __init__(self, encoder: Encoder, layout: Layout, ids: list[int], offsets: Any):
        self.encoder = encoder
        self.layout = layout
        self.ids = ids
        self.encoding = offsets if isinstance(offsets, Encoding | FastEncoding) else None
        pairs = None if offsets is None or self.encoding is not None else np.array(offsets).reshape(-1, 2)
        self.starts = None if pairs is None else pairs[:, 0]
        self.ends = None if pairs is None else pairs[:, 1]

    def first_with(self, position: int) -> int:
        """Return the index of the first token with text at or after ``position``."""
        if self.encoding is not None:
            places = range(position, len(self.layout.text))
            tokens = map(self.encoding.char_to_token, places)
            return next((token for token in tokens if token is not None), len(self.ids))
        if self.ends is not None:
            behind = self.ends > position
            return int(behind.argmax()) if behind.any() else len(self.ids)
        if position >= len(self.layout.text):
            return len(self.ids)
        return self._shared(self._head(position))

    def merged(self, position: int, index: int) -> bool:
        """Return whether the token at ``index`` also has text before ``position``."""
        if self.encoding is not None:
            chars = self.encoding.token_to_chars(index) if index < len(self.ids) else None
            return chars is not None and chars[0] < position < chars[1]
        if self.starts is not None and self.ends is not None:
            return index < len(self.ids) and bool(self.starts[index] < position < self.ends[index])
        return self._shared(self._head(position)) < len(self._head(position))

    def _head(self, position: int) -> list[int]:
        tokenizer = self.encoder.tokenizer
        head = tokenizer(self.layout.text[:position], add_special_tokens=self.layout.plain, verbose=False)["input_ids"]
        if self.layout.plain:
            ended = (
                head and head[-1] == self.encoder.eos and not self.layout.text[:position].endswith(tokenizer.eos_token)
            )
            head = head[:-1] if ended else head
        return head

    def _shared(self, head: list[int]) -> int:
        pairs = enumerate(zip(head, self.ids, strict=False))
        return next((index for index, (a, b) in pairs if a != b), min(len(head), len(self.ids)))
