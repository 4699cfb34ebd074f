"""Text of each token, in bytes, as a tokenizer's decoder writes it.

Token boundaries may be inside a character, so a token's text is bytes; joined they are the text of the whole list. The
list may be any, also one that the tokenizer itself would never make of that text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from typing import Any

#: Takes and returns the texts of consecutive tokens. Bytes that are no character of their own are surrogate escapes.
Step = Callable[[list[str]], list[str]]
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
#: Clean-up of the WordPiece decoder, in its order.
_CLEANUP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" do not", " don't"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)
#: Decoders' replacement for bytes that are no character.
_REPLACEMENT = "\ufffd"
#: Settled pieces that are decoded again as context of the next one, and most tokens of one character.
_CONTEXT, _LONGEST = 4, 6


def token_bytes(tokenizer: Any, ids: list[int]) -> list[bytes]:
    """Return the text of each token ``(n)``; special tokens and ids outside the vocabulary have none.

    Joined they are ``tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)``, with the
    bytes of unfinished characters where the decoder writes replacement characters.
    """
    special = special_ids(tokenizer)
    steps = _steps_of(tokenizer)
    known = len(tokenizer)
    if steps is None:
        places = [place for place, one in enumerate(ids) if one not in special and 0 <= one < known]
        texts = _incremental(tokenizer, [ids[place] for place in places])
    else:
        name = tokenizer.backend_tokenizer.id_to_token
        names = {place: name(one) for place, one in enumerate(ids) if one >= 0 and one not in special}
        places = [place for place, one in names.items() if one is not None]
        texts = [_to_bytes(text) for text in _run(steps, [names[place] for place in places])]
    found = [b""] * len(ids)
    for place, text in zip(places, texts, strict=True):
        found[place] = text
    return found


def vocabulary_bytes(tokenizer: Any) -> dict[int, bytes]:
    """Map ids to texts in the middle of a sequence; without special tokens and those without text."""
    special = special_ids(tokenizer)
    steps = _steps_of(tokenizer)
    ids = sorted(one for one in set(tokenizer.get_vocab().values()) if one not in special)
    if steps is None:
        texts = _inner_texts(tokenizer, ids)
    else:
        name = tokenizer.backend_tokenizer.id_to_token
        # Decoders treat the first and the last token of a list differently.
        inner = _run(steps, ["a", *[name(one) for one in ids], "a"])[1:-1]
        texts = [_to_bytes(text) for text in inner]
    return {one: text for one, text in zip(ids, texts, strict=True) if text}


def is_byte_token(tokenizer: Any, token: int) -> bool:
    """Whether the token is the fallback for one byte, as ``<0x0A>``, beside tokens of whole characters."""
    name = tokenizer.convert_ids_to_tokens(token)
    return isinstance(name, str) and _BYTE.fullmatch(name) is not None


def special_ids(tokenizer: Any) -> set[int]:
    """Return ids that decode to no text: the end of a sequence, padding, marks of a chat template."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return set(tokenizer.all_special_ids) | {one for one, token in added.items() if token.special}


def _to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _run(steps: list[Step], texts: list[str]) -> list[str]:
    for step in steps if texts else ():
        texts = step(texts)
    return texts


def _steps_of(tokenizer: Any) -> list[Step] | None:
    """Return the steps of a fast tokenizer's decoder; None where only decoding itself gives the text."""
    if not getattr(tokenizer, "is_fast", False):
        return None
    decoder = tokenizer.backend_tokenizer.decoder
    if decoder is None:
        return [_spaced]
    facts = json.loads(decoder.__getstate__())
    steps: list[Step] = []
    fused = False
    for one in facts["decoders"] if facts["type"] == "Sequence" else [facts]:
        kind = one["type"]
        step = _step(one, fused)
        if step is None:
            return None
        fused = fused or kind == "Fuse"
        steps.append(step)
    return steps


def _step(facts: dict[str, Any], fused: bool) -> Step | None:
    """Return one step of a decoder. ``fused``: earlier steps joined all tokens, so only the text's ends are ends."""
    match facts:
        case {"type": "Fuse"}:
            return lambda texts: texts
        case {"type": "ByteFallback"} if not fused:
            return lambda texts: [_fallback(text) for text in texts]
        case {"type": "Replace", "pattern": {"String": old}, "content": new}:
            return lambda texts: [text.replace(old, new) for text in texts]
        case {"type": "Strip", "content": content, "start": start, "stop": stop}:
            return (_strip_whole if fused else _strip_each)(content, start, stop)
        case {"type": "ByteLevel"} if not fused:
            return lambda texts: [_byte_level(text) for text in texts]
        case {"type": "Metaspace", "replacement": mark} if not fused:
            return _metaspace(mark, facts.get("prepend_scheme", "always") != "never")
        case {"type": "WordPiece", "prefix": prefix, "cleanup": cleanup} if not fused:
            return _word_piece(prefix, cleanup)
        case {"type": "BPEDecoder", "suffix": suffix} if not fused:
            return lambda texts: [*[t.replace(suffix, " ") for t in texts[:-1]], texts[-1].replace(suffix, "")]
    return None


def _spaced(texts: list[str]) -> list[str]:
    return [texts[0], *[" " + text for text in texts[1:]]]


def _fallback(text: str) -> str:
    byte = _BYTE.fullmatch(text)
    return bytes([int(byte[1], 16)]).decode("utf-8", "surrogateescape") if byte else text


@cache
def _byte_of() -> dict[str, int]:
    """Map the printable character of each byte in byte-level vocabularies to the byte: 0x20 is Ġ."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}


def _byte_level(text: str) -> str:
    table = _byte_of()
    if any(character not in table for character in text):
        return text  # an added token, which is stored unchanged
    return bytes(table[character] for character in text).decode("utf-8", "surrogateescape")


def _metaspace(mark: str, prepended: bool) -> Step:
    def step(texts: list[str]) -> list[str]:
        return [texts[0].replace(mark, "" if prepended else " "), *[text.replace(mark, " ") for text in texts[1:]]]

    return step


def _word_piece(prefix: str, cleanup: bool) -> Step:
    def step(texts: list[str]) -> list[str]:
        inner = [text.removeprefix(prefix) if text.startswith(prefix) else " " + text for text in texts[1:]]
        return [_tidy(text) if cleanup else text for text in [texts[0], *inner]]

    return step


def _tidy(text: str) -> str:
    for old, new in _CLEANUP:
        text = text.replace(old, new)
    return text


def _strip_each(content: str, start: int, stop: int) -> Step:
    return lambda texts: [_stripped(text, content, start, stop)[0] for text in texts]


def _strip_whole(content: str, start: int, stop: int) -> Step:
    def step(texts: list[str]) -> list[str]:
        texts, left = list(texts), start
        for place, text in enumerate(texts):
            texts[place], taken, _ = _stripped(text, content, left, 0)
            left = left - taken if not texts[place] else 0
        left = stop
        for place in range(len(texts) - 1, -1, -1):
            texts[place], _, taken = _stripped(texts[place], content, 0, left)
            left = left - taken if not texts[place] else 0
        return texts

    return step


def _stripped(text: str, content: str, start: int, stop: int) -> tuple[str, int, int]:
    """Strip ``content`` up to ``start`` and ``stop`` times from the text's ends; return it and both counts."""
    first = 0
    while first < start and text.startswith(content, first):
        first += 1
    last = len(text)
    while len(text) - last < stop and last > first and text[last - 1] == content:
        last -= 1
    return text[first:last], first, len(text) - last


def _incremental(tokenizer: Any, ids: list[int]) -> list[bytes]:
    """Return what each token adds to the decoded text. Tokens that complete a character share its bytes evenly."""
    found = [b""] * len(ids)
    settled = [0]  # places between two tokens that are also between two characters
    pending = ""  # the decoded text where it ends inside a character, or seems to
    for place in range(len(ids)):
        anchor, first = settled[max(0, len(settled) - 1 - _CONTEXT)], settled[-1]
        before, now = _decode(tokenizer, ids[anchor:first]), _decode(tokenizer, ids[anchor : place + 1])
        if now.endswith(_REPLACEMENT) and place + 1 < len(ids) and place - first < _LONGEST:
            pending = now
            continue
        if first < place and now.startswith(pending):  # no unfinished character: the text has the replacement itself
            _share(found, first, place, before, pending)
            settled.append(place)
            first, before = place, pending
        _share(found, first, place + 1, before, now)
        settled.append(place + 1)
    return found


def _share(found: list[bytes], first: int, stop: int, before: str, now: str) -> None:
    """Distribute the bytes of ``now`` after ``before`` over tokens from ``first``; the last one gets the rest."""
    text = _to_bytes(now[len(before) :]) if now.startswith(before) else b""
    size = len(text) // (stop - first)
    for place in range(first, stop):
        start = (place - first) * size
        found[place] = text[start : start + size] if place + 1 < stop else text[start:]


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _inner_texts(tokenizer: Any, ids: list[int]) -> list[bytes]:
    """Return the text of each token after another one; empty for parts of characters."""

    context = next((one for one in ids if _decode(tokenizer, [one]).strip(_REPLACEMENT + " \n")), None)
    if context is None:
        return [b""] * len(ids)
    before = _decode(tokenizer, [context])
    texts = [_decode(tokenizer, [context, one]) for one in ids]
    return [
        b"" if _REPLACEMENT in text or not text.startswith(before) else _to_bytes(text[len(before) :]) for text in texts
    ]
