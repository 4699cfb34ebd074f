"""Tokens of many texts by gigatoken, where it is installed: those of the tokenizer itself, in a fifth of its time.

Only what can be shown to be equal goes this way. The tokenizer must be byte-level BPE of a plain form and agree on
texts that are known to be hard; each result must cover its text byte for byte; texts with characters that Unicode's
versions class differently, or that are not normalised, are left to the tokenizer.
"""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from dataclasses import dataclass
from typing import Any

import numpy as np

from posttrain.data.tokens.templates import Layout

#: Texts that implementations of byte-level BPE cut differently when they are wrong.
_HARD = (
    "Hello world",
    "  two  spaces\n\n\n and\t\ttabs \r\n\r\n",
    " \n \n  x   \n",
    "I'm we'll THEY'RE it's 'sure' don't\u2019s",
    "1 12 123 1234 12345.678,9e-10",
    "def f(x):\n    return x**2  # \u00b2\n\n\nclass A:\n\tpass",
    "na\u00efve caf\u00e9 \u00fcber Stra\u00dfe \u0130stanbul",
    "\u4e2d\u6587\u548c\u65e5\u672c\u8a9e \ud55c\uad6d\uc5b4",
    "\u0440\u0443\u0441\u0441\u043a\u0438\u0439 \u0627\u0644\u0639\u0631\u0628\u064a\u0629",
    "\U0001f642\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2026 \u00a0\u2003\u3000\ufeff\u2028",
    "http://a.b/c?d=e&f=%20 <tag a='b'>&amp;</tag> {\"k\": [1, null]}",
    "\x00\x01\x7f\x85 _-_-_ !!!??? ... ///",
)


@dataclass
class FastEncoding:
    """Tokens of one text, and which token has a character: the part of ``tokenizers.Encoding`` that layouts need."""

    text: str
    ids: list[int]
    ends: np.ndarray  # (n,) int64
    """Bytes of the text up to the end of each token."""

    def char_to_token(self, place: int) -> int | None:
        """Return the first token with bytes of the character at ``place``."""
        at = int(np.searchsorted(self.ends, self._bytes(place), side="right"))
        return at if at < len(self.ids) else None

    def token_to_chars(self, index: int) -> tuple[int, int]:
        """Return where the token's first character begins and its last one ends."""
        start, end = int(self.ends[index - 1]) if index else 0, int(self.ends[index])
        if self.text.isascii():
            return start, end
        data = self.text.encode()
        while start and data[start] & 0xC0 == 0x80:  # inside a character
            start -= 1
        first = len(data[:start].decode())
        return first, first + len(data[start:end].decode(errors="replace"))

    def _bytes(self, place: int) -> int:
        return place if self.text.isascii() else len(self.text[:place].encode())


class FastEncoder:
    """gigatoken's copy of a tokenizer, proven on hard texts and on the first texts that come."""

    def __init__(self, made: Any, config: dict[str, Any], unknown: int):
        self.made = made
        self.normalises = config["normalizer"] is not None
        self.trims = any(one.get("trim_offsets") for one in _processors(config["post_processor"]))
        self.unknown = unknown  # the first number that the tokenizer itself does not have
        self.bytes = np.zeros(unknown, np.int64)  # (V,) of each token's text
        for token, number in config["model"]["vocab"].items():
            self.bytes[number : number + 1] = len(token)  # byte-level tokens have a character for each byte
        for token in config["added_tokens"]:
            self.bytes[token["id"]] = len(token["content"].encode())
        self.broken = False
        self.proven = False
        """Whether texts of the data were compared."""

    @classmethod
    def of(cls, tokenizer: Any) -> FastEncoder | None:
        """Make one for a tokenizer; None without gigatoken, for other forms, and where the two differ."""
        try:
            from gigatoken import Tokenizer
        except ImportError:
            return None
        config = json.loads(tokenizer.backend_tokenizer.to_str())
        if tokenizer.split_special_tokens or not _plain_form(config):
            return None
        numbers = [*config["model"]["vocab"].values(), *(token["id"] for token in config["added_tokens"])]
        try:
            found = cls(Tokenizer.from_json(json.dumps(_with_all_bytes(config))), config, max(numbers) + 1)
        except RuntimeError:  # a form of tokenizer that it does not read
            return None
        return found if found.agrees(tokenizer, list(_HARD)) else None

    def of_layouts(self, tokenizer: Any, layouts: list[Layout]) -> dict[int, FastEncoding]:
        """Return tokens by the layout's place, of those that both ways see alike; of none if the first ones differ."""
        places = [place for place, layout in enumerate(layouts) if layout.text and not layout.plain]
        places = [place for place in places if self._takes(layouts[place])]
        texts = [layouts[place].text for place in places]
        if not self.proven and texts:
            self.proven, self.broken = True, not self.agrees(tokenizer, texts)
        if self.broken or not texts:
            return {}
        return {place: one for place, one in zip(places, self.encode(texts), strict=True) if one is not None}

    def _takes(self, layout: Layout) -> bool:
        """Return whether a layout's text and its boundaries are ones that both ways see alike."""
        text = layout.text
        if self.trims:  # the tokenizer leaves a token's outer spaces out of its characters
            places = {layout.boundary, *layout.marks, *(place for span in layout.spans for place in span)}
            if any(" " in text[max(0, place - 1) : place + 1] for place in places):
                return False
        return self._sure(text)

    def encode(self, texts: list[str]) -> list[FastEncoding | None]:
        """Return the tokens of each text; None where they do not cover it byte for byte."""
        rows = self.made.encode_batch(texts, parallel=False).layout
        ends, numbers = np.asarray(rows.offsets), np.asarray(rows.content.data)
        found: list[FastEncoding | None] = []
        for text, start, end in zip(texts, ends[:-1], ends[1:], strict=True):
            own = numbers[start:end]
            known = len(own) and int(own.max()) < self.unknown
            reached = np.cumsum(self.bytes[own]) if known else np.zeros(1, np.int64)  # (n,)
            size = len(text) if text.isascii() else len(text.encode())
            found.append(FastEncoding(text, own.tolist(), reached) if known and int(reached[-1]) == size else None)
        return found

    def agrees(self, tokenizer: Any, texts: list[str]) -> bool:
        """Return whether the tokenizer gives the texts the same tokens, with the same characters."""
        backend = tokenizer.backend_tokenizer
        wanted = backend.encode_batch(texts, add_special_tokens=False)
        for text, own, theirs in zip(texts, self.encode(texts), wanted, strict=True):
            if own is None or not self._sure(text):
                continue
            places = [at for at, one in enumerate(text) if not (self.trims and one == " ")]
            same = own.ids == theirs.ids and all(own.char_to_token(p) == theirs.char_to_token(p) for p in places[:512])
            if not same:
                return False
        return True

    def _sure(self, text: str) -> bool:
        normal = not self.normalises or text.isascii() or unicodedata.is_normalized("NFC", text)
        return normal and (text.isascii() or _newer_characters().search(text) is None)


@functools.cache
def _newer_characters() -> re.Pattern[str]:
    """Return what finds characters that are newer than Unicode 3.2, or free.

    One library may take them for letters and another not. Emoji are neither letters nor digits in any version.
    """
    old = unicodedata.ucd_3_2_0
    free = [chr(one) for one in range(0x10000) if old.category(chr(one)) == "Cn"]
    return re.compile(f"[{re.escape(''.join(free))}\U00010000-\U0001efff\U0001fb00-\U0001ffff\U0002a6d7-\U0010ffff]")


def _plain_form(config: dict[str, Any]) -> bool:
    """Return whether a tokenizer is byte-level BPE with nothing that changes a text beside NFC."""
    model, cut = config["model"], config["pre_tokenizer"] or {}
    parts = cut.get("pretokenizers", [cut])
    level, splits = parts[-1], parts[:-1]
    plain = model["type"] == "BPE" and not any(
        model.get(name) for name in ("dropout", "byte_fallback", "continuing_subword_prefix", "end_of_word_suffix")
    )
    cuts = level.get("type") == "ByteLevel" and not level["add_prefix_space"] and level["use_regex"] == (not splits)
    once = all(one["type"] == "Split" and one["behavior"] == "Isolated" and not one["invert"] for one in splits)
    added = not any(one["lstrip"] or one["rstrip"] or one["single_word"] for one in config["added_tokens"])
    normal = config["normalizer"] is None or config["normalizer"] == {"type": "NFC"}
    return plain and cuts and once and len(splits) <= 1 and added and normal


def _processors(processor: dict[str, Any] | None) -> list[dict[str, Any]]:
    return [] if processor is None else [processor, *processor.get("processors", [])]


def _with_all_bytes(config: dict[str, Any]) -> dict[str, Any]:
    """Add the bytes that a vocabulary lacks, which gigatoken wants, behind all numbers: their texts are left out."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    vocabulary = dict(config["model"]["vocab"])
    number = max([*vocabulary.values(), *(token["id"] for token in config["added_tokens"])]) + 1
    for letter in bytes_to_unicode().values():
        if letter not in vocabulary:
            vocabulary[letter] = number
            number += 1
    return config | {"model": config["model"] | {"vocab": vocabulary}}
