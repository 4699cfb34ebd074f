"""The tokenizer in Rust, asked directly, gives what its class gives; a class with ways of its own is not passed by."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from posttrain.data import read_rows
from posttrain.data.tokens import preparation, tokenise
from posttrain.settings import Settings
from transformers import PreTrainedTokenizerFast

from .conftest import _build

TEXTS = st.text(st.sampled_from("ab c\n~üé漢😀\u0301"), min_size=1, max_size=9).filter(str.strip)


def arrays(tokenizer, rows):
    own = Settings().data
    found = preparation.prepare(read_rows(rows, ("prompt-completion",), own), tokenizer, own, {1}, None)
    return found.arrays, found.report


@pytest.mark.parametrize("template", [None, "chatml", "llama"])
@pytest.mark.parametrize("bos", [False, True])
@settings(deadline=None, max_examples=25)
@given(texts=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4))
def test_the_class_and_its_backend_agree(template, bos, texts):
    """Characters of several tokens, merges over the boundary, plain text and conversations."""
    tokenizer = _build(template, merges=[("a", "b"), ("b", "a")], bos=bos)
    if template is None:
        rows = [{"prompt": ask, "completion": answer} for ask, answer in texts]
    else:
        turn = lambda role, text: [{"role": role, "content": text}]  # noqa: E731
        rows = [{"prompt": turn("user", ask), "completion": turn("assistant", answer)} for ask, answer in texts]
    with pytest.MonkeyPatch.context() as patch:
        directly, report = arrays(tokenizer, rows)
        patch.setattr(tokenise, "_calls_backend", lambda kind: False)
        wanted, wanted_report = arrays(tokenizer, rows)
    assert report == wanted_report
    assert all(np.array_equal(directly[name], wanted[name]) for name in wanted)


def test_a_class_with_ways_of_its_own_is_called():
    class Shouting(PreTrainedTokenizerFast):
        def __call__(self, text, **options):
            upper = text.upper() if isinstance(text, str) else [one.upper() for one in text]
            return super().__call__(upper, **options)

    plain = _build()
    own = Shouting(tokenizer_object=plain.backend_tokenizer, eos_token="</s>")
    assert tokenise._calls_backend(type(plain))
    assert not tokenise._calls_backend(Shouting)
    found, _ = arrays(own, [{"prompt": "a", "completion": "b"}])
    assert found["ids"][:2].tolist() == plain.convert_tokens_to_ids(["A", "B"])


def test_settings_that_another_call_left_behind_do_not_stay():
    tokenizer = _build()
    rows = [{"prompt": "abc", "completion": "cba"}]
    wanted, _ = arrays(tokenizer, rows)
    encoder = tokenise.Encoder(tokenizer, {1})
    tokenizer("abcdef", truncation=True, max_length=2, padding="max_length")
    assert len(next(encoder._encoded(["abccba"], plain=False))[0]) == len(wanted["ids"]) - 1  # without the end
