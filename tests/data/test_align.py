"""Tokens as bytes of text, and two tokenisers aligned by them: tokenizers of every kind, made from a few lines."""

import unicodedata
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from posttrain.distillation.align import align, shared_vocabulary, spans
from posttrain.distillation.token_bytes import token_bytes, vocabulary_bytes
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

LINES = [
    "Hello world, the cat sat on the mat. It doesn't matter, does it?",
    "naïve café déjà vu, Straße, ﬁnal ½ 🙂🙃",
    "你好，世界。今天天气很好。",
    "def add(a, b):\n    return a + b\n\n",
]
SMOLLM = Path.home() / ".cache" / "posttrain" / "smollm2-135m"
SPECIAL = {"eos_token": "</s>", "unk_token": "<unk>"}


def wrapped(backend, **special):
    return PreTrainedTokenizerFast(tokenizer_object=backend, **(special or SPECIAL))


def byte_level():
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["</s>", "<unk>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(LINES, trainer)
    return wrapped(backend)


def pieces(normalizer, decoder):
    """Unigram as SentencePiece writes it: ▁ for a space, one token for each byte."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=["</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(["▁" + line for line in LINES], trainer)
    vocabulary = [(token, backend.token_to_id(token)) for token in backend.get_vocab()]
    ranked = [(token, -float(place)) for token, place in sorted(vocabulary, key=lambda pair: pair[1])]
    ranked += [(f"<0x{byte:02X}>", -500.0) for byte in range(256)]
    backend = Tokenizer(models.Unigram(ranked, unk_id=1, byte_fallback=True))
    backend.normalizer = normalizer
    backend.decoder = decoder
    return wrapped(backend)


def sentence_piece():
    """Byte fallback, a space put before the text and taken away again, as Llama 2 has it."""
    return pieces(
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        ),
    )


def compatible():
    """NFKC before everything, as T5 and XLM-R have it; Gemma's decoder."""
    return pieces(
        normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" ", "▁")]),
        decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
    )


def word_piece():
    """Lower case, no accents, unknown words dropped, one space between words, as BERT has it."""
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    trainer = trainers.WordPieceTrainer(vocab_size=160, special_tokens=["</s>", "<unk>"], show_progress=False)
    backend.train_from_iterator(LINES, trainer)
    return wrapped(backend)


def letters():
    backend = Tokenizer(
        models.WordLevel({"</s>": 0, "<unk>": 1, **{c: n for n, c in enumerate(CHARACTERS, 2)}}, "<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("(?m)."), "isolated")
    backend.decoder = decoders.Fuse()
    return wrapped(backend)


def metaspace():
    """The decoder that drops every mark of the first token."""
    backend = Tokenizer(models.BPE({"</s>": 0, "<unk>": 1, "▁": 2, "▁▁": 3, "a": 4, "▁a": 5}, []))
    backend.decoder = decoders.Metaspace()
    return wrapped(backend)


def words():
    """No decoder at all: tokens are joined with spaces."""
    return wrapped(Tokenizer(models.WordLevel({"</s>": 0, "<unk>": 1, "ab": 2, "c": 3}, "<unk>")))


def suffixes():
    """A mark at the end of a word instead of its beginning."""
    backend = Tokenizer(models.BPE({"</s>": 0, "<unk>": 1, "ab": 2, "c</w>": 3, "d</w>": 4}, []))
    backend.decoder = decoders.BPEDecoder("</w>")
    return wrapped(backend)


CHARACTERS = sorted({c for line in LINES for c in line} | set(" \n\u0301abcdefghijklmnopqrstuvwxyzÅé"))
KINDS = {
    "byte-level": byte_level(),
    "sentence-piece": sentence_piece(),
    "compatible": compatible(),
    "word-piece": word_piece(),
    "letters": letters(),
    "metaspace": metaspace(),
    "words": words(),
    "suffixes": suffixes(),
}
#: Those that write any text as it is.
EXACT = ["byte-level", "sentence-piece"]
if SMOLLM.exists():
    KINDS["smollm"] = AutoTokenizer.from_pretrained(SMOLLM)
    EXACT.append("smollm")

PARTS = [
    "Hello",
    " world",
    "  ",
    "\n",
    "\t",
    "🙂",
    "👩‍👩‍👧",
    "你好",
    "世界。",
    "e\u0301",
    "é",
    "ﬁ",
    "½",
    "Å",
    "ß",
    "¿",
    ".",
    " ,",
]
TEXTS = st.lists(st.sampled_from(PARTS) | st.text(max_size=3), max_size=12).map("".join)
PAIRS = [(one, other) for one in EXACT for other in EXACT]


class Slow:
    """The same tokenizer as one written in Python, of which nothing but its decoding is known."""

    is_fast = False

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def __len__(self):
        return len(self._tokenizer)

    def __getattr__(self, name):
        assert name not in ("backend_tokenizer", "_tokenizer")
        return getattr(self._tokenizer, name)


def encode(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


def decode(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def ids_of(kind, seeds):
    """Any list of ids: nothing that an encoder would write (G11)."""
    return [seed % len(KINDS[kind]) for seed in seeds]


def check_partition(found, student, teacher):
    for side, tokens in enumerate((student, teacher)):
        ends = [0, *[pair[side].stop for pair in found]]
        assert [pair[side].start for pair in found] == ends[:-1]
        assert ends[-1] == len(tokens)
    assert all(one.stop > one.start or other.stop > other.start for one, other in found)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(text=TEXTS)
def test_tokens_of_an_encoded_text_join_to_the_decoded_text(kind, text):
    tokenizer = KINDS[kind]
    ids = encode(tokenizer, text)
    assert b"".join(token_bytes(tokenizer, ids)).decode(errors="replace") == decode(tokenizer, ids)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(seeds=st.lists(st.integers(0, 10**9), max_size=12))
def test_tokens_of_any_list_join_to_the_decoded_text(kind, seeds):
    """G11. Bytes that form no character are kept, where the decoder writes a replacement."""
    tokenizer = KINDS[kind]
    ids = ids_of(kind, seeds)
    joined = b"".join(token_bytes(tokenizer, ids))
    if kind in ("byte-level", "smollm"):
        assert joined.decode(errors="replace") == decode(tokenizer, ids)
    elif "\ufffd" not in decode(tokenizer, ids):
        assert joined == decode(tokenizer, ids).encode()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None)
@given(text=TEXTS)
def test_decoding_alone_tells_the_same(kind, text):
    """A tokenizer of which nothing is known: equal text, and equal tokens where each has whole characters."""
    tokenizer = KINDS[kind]
    ids = encode(tokenizer, text)
    known, found = token_bytes(tokenizer, ids), token_bytes(Slow(tokenizer), ids)
    if _whole(b"".join(known)):
        assert b"".join(found) == b"".join(known)
    if all(_whole(one) for one in known) and b"\xef\xbf\xbd" not in b"".join(known):
        assert found == known


def _whole(text):
    return text.decode(errors="replace").encode() == text


def test_special_tokens_and_ids_outside_the_vocabulary_have_no_text():
    tokenizer = KINDS["byte-level"]
    ids = encode(tokenizer, "Hello")
    for one in (tokenizer, Slow(tokenizer)):
        assert token_bytes(one, [0, *ids, 1, 10**6, 0]) == [b"", *token_bytes(one, ids), b"", b"", b""]


def test_parts_of_a_character():
    """Four tokens of one byte each, under both conventions and by decoding alone."""
    for kind in ("byte-level", "sentence-piece"):
        tokenizer = KINDS[kind]
        names = ["ð", "Ł", "¦", "Ĭ"] if kind == "byte-level" else ["<0xF0>", "<0x9F>", "<0xA6>", "<0x8A>"]
        ids = tokenizer.convert_tokens_to_ids(names)
        assert None not in ids
        assert token_bytes(tokenizer, ids) == [b"\xf0", b"\x9f", b"\xa6", b"\x8a"]
        assert token_bytes(Slow(tokenizer), ids) == [b"\xf0", b"\x9f", b"\xa6", b"\x8a"]
        assert token_bytes(tokenizer, ids[:3]) == [b"\xf0", b"\x9f", b"\xa6"]


def test_conventions_by_hand():
    def texts(kind, *names):
        return token_bytes(KINDS[kind], KINDS[kind].convert_tokens_to_ids(list(names)))

    assert texts("metaspace", "▁▁", "▁a", "a") == [b"", b" a", b"a"]
    assert texts("words", "ab", "c") == [b"ab", b" c"]
    assert texts("suffixes", "ab", "c</w>", "d</w>") == [b"ab", b"c ", b"d"]
    assert texts("sentence-piece", "▁", "<0x41>", "▁") == [b"", b"A", b" "]
    assert texts("sentence-piece", "<0x20>", "▁") == [b"", b" "]


@pytest.mark.parametrize(("one", "other"), PAIRS)
@settings(max_examples=40, deadline=None)
@given(text=TEXTS, seeds=st.lists(st.integers(0, 10**9), max_size=8))
def test_spans_of_equal_texts(one, other, text, seeds):
    """Each span has the same text on both sides, and as many spans close as there are common ends."""
    student = token_bytes(KINDS[one], [*encode(KINDS[one], text), *ids_of(one, seeds)])
    whole = b"".join(student)
    teacher = token_bytes(KINDS[other], encode(KINDS[other], whole.decode(errors="replace")))
    if b"".join(teacher) != whole:  # the sampled tokens end in the middle of a character
        check_partition(spans(student, teacher), student, teacher)
        return
    found = spans(student, teacher)
    check_partition(found, student, teacher)
    for first, second in found:
        assert b"".join(student[first]) == b"".join(teacher[second])
    written = [pair for pair in found if any(student[pair[0]])]
    assert len(written) == len(_ends(student) & _ends(teacher))


def _ends(tokens):
    return {len(b"".join(tokens[: place + 1])) for place in range(len(tokens))} - {0}


@pytest.mark.parametrize("one", KINDS)
@pytest.mark.parametrize("other", ["compatible", "word-piece", "letters"])
@settings(max_examples=25, deadline=None)
@given(text=TEXTS)
@example(text="Straße ﬁne Café ½  x\n\ny")
def test_spans_of_a_teacher_that_normalises(one, other, text):
    """Every token has its span; a span's letters are the same on both sides, but for what normalising drops."""
    student = token_bytes(KINDS[one], encode(KINDS[one], text))
    teacher = token_bytes(KINDS[other], encode(KINDS[other], b"".join(student).decode(errors="replace")))
    found = spans(student, teacher)
    check_partition(found, student, teacher)
    if _plain(b"".join(student)) == _plain(b"".join(teacher)):
        for first, second in found:
            assert _plain(b"".join(student[first])) == _plain(b"".join(teacher[second]))


def _plain(text):
    """ASCII letters of a text: the same before and after any of these normalisers, if none is part of a sign."""
    characters = text.decode(errors="replace")
    folded = unicodedata.normalize("NFKD", characters).casefold()
    return [c for c in folded if c in "abcdefghijklmnopqrstuvwxyz0123456789"]


def test_alignment():
    """Hello as the student sampled it, letter by letter, and the end of the sequence."""
    student, teacher = KINDS["byte-level"], KINDS["letters"]
    ids = [*student.convert_tokens_to_ids(["H", "e", "l", "l", "o"]), *encode(student, " world"), 0]
    found = align(student, ids, teacher, [*encode(teacher, "Hello world"), 0])
    assert found.student_spans.dtype == found.teacher_spans.dtype == torch.int64
    assert found.student_spans[:5].tolist() == found.teacher_spans[:5].tolist() == [0, 1, 2, 3, 4]
    assert found.student_spans[-1] == found.teacher_spans[-1] == found.spans - 1
    assert found.text.tolist() == [True] * (found.spans - 1) + [False]
    assert (len(found.student_spans), len(found.teacher_spans)) == (len(ids), 12)


def test_alignment_of_nothing():
    found = align(KINDS["byte-level"], [], KINDS["letters"], [])
    assert (found.spans, found.student_spans.tolist(), found.text.tolist()) == (0, [], [])
    assert found.text.dtype == torch.bool


def test_shared_vocabulary_by_hand():
    """Ġab, ▁ab and a WordPiece ab mean the same; so do ab, ab and ##ab; the letter goes before its byte."""
    level = Tokenizer(models.BPE({"<e>": 0, "<u>": 1, "Ġab": 2, "ab": 3, "Ċ": 4, "ð": 5, "a": 6, "Q": 7}, []))
    level.decoder = decoders.ByteLevel()
    level = wrapped(level, eos_token="<e>", unk_token="<u>")
    vocabulary = {"<unk>": 0, "ab": 1, "▁ab": 2, "<0x61>": 3, "<0x0A>": 4, "<0xF0>": 5, "a": 6, "</s>": 7}
    piece = Tokenizer(models.BPE(vocabulary, []))
    piece.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    piece = wrapped(piece)
    words = Tokenizer(models.WordPiece({"</s>": 0, "<unk>": 1, "ab": 2, "##ab": 3}, unk_token="<unk>"))
    words.decoder = decoders.WordPiece()
    words = wrapped(words)
    assert [one.tolist() for one in shared_vocabulary(level, piece)] == [[0, 1, 2, 3, 4, 5, 6], [7, 0, 2, 1, 4, 5, 6]]
    assert [one.tolist() for one in shared_vocabulary(piece, words)] == [[0, 1, 2, 7], [1, 3, 2, 0]]


def test_special_tokens_are_matched_by_role_then_by_name_and_once():
    """A pad that is also the end of the sequence has one partner: the other's end."""
    names = {"<a>": 0, "<b>": 1, "<mark>": 2}
    one = wrapped(Tokenizer(models.WordLevel(names, "<a>")), eos_token="<a>", pad_token="<a>", bos_token="<b>")
    other = wrapped(Tokenizer(models.WordLevel(names, "<a>")), eos_token="<b>", pad_token="<a>")
    for tokenizer in (one, other):
        tokenizer.add_special_tokens({"additional_special_tokens": ["<mark>"]})
    assert [ids.tolist() for ids in shared_vocabulary(one, other)] == [[0, 2], [1, 2]]


@pytest.mark.parametrize("one", KINDS)
@pytest.mark.parametrize("other", ["byte-level", "sentence-piece", "word-piece"])
def test_shared_tokens_mean_the_same(one, other):
    student, teacher = KINDS[one], KINDS[other]
    ids, others = (found.tolist() for found in shared_vocabulary(student, teacher))
    assert ids == sorted(set(ids))
    assert len(others) == len(set(others)) == len(ids)
    texts, partners = vocabulary_bytes(student), vocabulary_bytes(teacher)
    assert all(texts.get(a) == partners.get(b) for a, b in zip(ids, others, strict=True))
    assert dict(zip(ids, others, strict=True))[student.eos_token_id] == teacher.eos_token_id


def test_vocabulary_by_decoding_alone():
    """Whole characters are found; a token that is part of one has no text of its own."""
    known, found = (vocabulary_bytes(one) for one in (KINDS["byte-level"], Slow(KINDS["byte-level"])))
    assert found == {one: text for one, text in known.items() if _whole(text)}
    assert len(found) < len(known)
