"""Texts that differ because one was normalised, and the spans of token lists given as text."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from posttrain.distillation import text_diff
from posttrain.distillation.align import spans
from posttrain.distillation.text_diff import text_positions

TEXTS = st.lists(st.sampled_from(["Hello", " ", "\n", "🙂", "é", "e\u0301", "ﬁ", "世界"]) | st.text(max_size=3)).map(
    "".join
)


def sizes(found):
    return [(one.stop - one.start, other.stop - other.start) for one, other in found]


def test_case_and_spaces_by_hand():
    """Hello World! without its first space and in lower case; the ends of both sequences meet."""
    found = spans([b" Hello", b" World", b"!", b""], [b"he", b"llo", b" wor", b"ld!", b""])
    assert found == [(slice(0, 1), slice(0, 2)), (slice(1, 3), slice(2, 4)), (slice(3, 4), slice(4, 5))]


def test_text_of_one_side_alone_is_a_span_of_its_own():
    """The teacher has no token for the second space and for the smiley."""
    student = [b"a", b" ", b" b", "🙂".encode(), b"c"]
    found = spans(student, [b"a", b" b", b"c"])
    assert sizes(found) == [(1, 1), (1, 0), (1, 1), (1, 0), (1, 1)]
    assert spans([], [b"a"]) == [(slice(0, 0), slice(0, 1))]
    assert spans([], []) == []


def test_compatibility_forms_by_hand():
    """ﬁ is one character of three bytes, fi are two: no cut inside, one behind it."""
    assert spans(["ﬁ".encode(), b"n"], [b"f", b"i", b"n"]) == [(slice(0, 1), slice(0, 2)), (slice(1, 2), slice(2, 3))]
    assert spans([b"e", "\u0301x".encode()], ["é".encode(), b"x"]) == [(slice(0, 2), slice(0, 2))]
    assert len(spans([b"E", b"t", "é".encode()], [b"e", b"t", b"e"])) == 3


def test_a_span_that_never_closes_is_closed_at_the_end():
    assert spans([b"ab", b"c"], [b"a", b"bc"]) == [(slice(0, 2), slice(0, 2))]


def test_tokens_without_text():
    """One inside the other side's token belongs to its span; of two beside one the last is the partner."""
    assert spans([b"a", b"", b"b"], [b"ab"]) == [(slice(0, 3), slice(0, 1))]
    found = spans([b"a", b"", b"", b"b"], [b"a", b"", b"b"])
    assert found[1:3] == [(slice(1, 2), slice(1, 1)), (slice(2, 3), slice(1, 2))]


@settings(max_examples=200, deadline=None)
@given(first=TEXTS, second=TEXTS)
def test_positions_of_both_texts_grow_on_the_axis(first, second):
    for axis, text in zip(text_positions(first.encode(), second.encode()), (first, second), strict=True):
        assert len(axis.ends) == len(axis.starts) == len(text.encode()) + 1
        places = [place for pair in zip(axis.ends, axis.starts, strict=True) for place in pair]
        assert places == sorted(places)
        assert all(start < end for start, end in zip(axis.starts, axis.ends[1:], strict=False))


@settings(max_examples=60, deadline=None)
@given(words=st.lists(st.sampled_from(["alpha", "beta", "gamma", "delta"]), min_size=1, max_size=12), data=st.data())
def test_a_dropped_word_disturbs_no_other(words, data):
    """With an unknown sign somewhere that the teacher drops, every word still meets itself."""
    place = data.draw(st.integers(0, len(words)))
    student = [f" {word}".encode() for word in words]
    found = spans([*student[:place], " 🙂".encode(), *student[place:]], student)
    assert sizes(found) == [(1, 1)] * place + [(1, 0)] + [(1, 1)] * (len(words) - place)


@pytest.mark.parametrize("most_edits", [500, 2])
@settings(max_examples=300, deadline=None)
@given(first=st.text("abc", max_size=9), second=st.text("abc", max_size=9))
def test_common_items_against_the_table_of_all_prefixes(most_edits, first, second):
    """As long as the textbook's table says; beyond the bound of edits a common subsequence all the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_diff, "_MOST_EDITS", most_edits)
        pairs = text_diff._common_items(first, second)
    assert all(first[i] == second[j] for i, j in pairs)
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in pairwise(pairs))
    if most_edits == 500:
        table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
        for i, a in enumerate(first):
            for j, b in enumerate(second):
                table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
        assert len(pairs) == table[-1][-1]


def test_several_dropped_signs_in_a_text_that_repeats_itself():
    """Every a, and every full stop, meets itself; the teacher knows no semicolon."""
    student = [b"a", b".", b";", b"a", b".", b"a", b";", b"."]
    found = spans(student, [b"a", b" .", b" a", b".", b"a", b"."])
    assert sizes(found) == [(1, 1), (1, 1), (1, 0), (1, 1), (1, 1), (1, 1), (1, 0), (1, 1)]


@pytest.mark.parametrize("most_edits", [500, 3])
def test_words_take_over_where_characters_differ_too_often(monkeypatch, most_edits):
    """Nine unknown signs in a long text, one of them inside a word."""
    monkeypatch.setattr(text_diff, "_MOST_EDITS", most_edits)
    words = [f" word{number}".encode() for number in range(30)]
    student = [token for word in words[:8] for token in (word, b";")] + [b" in", b"~", b"side", *words[8:]]
    found = spans(student, [*words[:8], b" inside", *words[8:]])
    assert sizes(found) == [(1, 1), (1, 0)] * 8 + [(3, 1)] + [(1, 1)] * 22


def test_a_word_that_is_whole_on_one_side_only():
    """Without the sign between them two words are one; the same word further on is not taken for it."""
    student = [b"world", b"&", b"a", b" world"]
    assert sizes(spans(student, [b"world", b"a", b" world"])) == [(1, 1), (1, 0), (1, 1), (1, 1)]


def test_other_white_space():
    """A teacher with one space where the student has line ends: the words meet, however the line ends are cut."""
    teacher = [b"a", b" b"]
    assert sizes(spans([b"a", b"\n\n", b"b"], teacher)) == [(1, 1), (1, 0), (1, 1)]
    assert sizes(spans([b"a", b"\n", b"\n", b"b"], teacher)) == [(1, 1), (1, 0), (1, 0), (1, 1)]
    assert sizes(spans([b"a", b"\n\nb"], teacher)) == [(1, 1), (1, 1)]
    assert sizes(spans([b"a", b" ;", b"b"], teacher)) == [(1, 1), (1, 0), (1, 1)]
