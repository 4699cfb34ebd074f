"""Rows that a method rewrites, chooses or extends before they are tokenised, and the roles that its card names."""

from types import ModuleType

import pytest
from posttrain import hookimpl, samples
from posttrain.catalogue.cards import Card
from posttrain.catalogue.methods import from_module
from posttrain.data import prepare, read_rows
from posttrain.data.reshape import reshape
from posttrain.errors import DataError, PluginError, SettingsError
from posttrain.settings import Settings

SCORED = [{"prompt": f"p{n}", "completion": f"c{n}", "score": n} for n in range(4)]
PAIRS = [
    {"forget": {"prompt": "p", "completion": "f"}, "retain": "rr", "alternative": {"prompt": "p", "completion": "a"}}
]


def method(hook=None, schema="scored", roles=()):
    """A method of one hook, which is a function of the rows."""
    module = ModuleType("posttrain_method_made_up")
    if hook is not None:

        @hookimpl
        def posttrain_rows(rows):
            return hook(rows)

        module.posttrain_rows = posttrain_rows
    return from_module(module, Card("made-up", "0.1.0", "experimental", "A test.", (schema,), roles=roles))


def read(rows, schema="scored", **settings):
    return read_rows(rows, (schema,), Settings(**settings).data)


def test_rows_are_chosen_and_rewritten_and_keep_their_origin():
    """Of rows 0 to 3 the odd ones come back, the later first, with other prompts."""
    rows = read(SCORED)
    made = reshape(rows, method(lambda rows: [{**rows[n], "prompt": "new"} for n in (3, 1)]), None)
    assert list(made) == [
        {"prompt": "new", "completion": "c3", "score": 3},
        {"prompt": "new", "completion": "c1", "score": 1},
    ]
    assert [origin for origin, _ in made.located()] == [rows.origin(3), rows.origin(1)]
    assert made.schema == "scored"
    assert made.notes == ["rows made into 2 by 'made-up' (4 rows)"]
    assert list(rows) == SCORED  # the rows that were read are as they were


def test_other_rows_are_cached_apart(tmp_path, tokenizer):
    """The fingerprint is that of what the method made, so an option that changes rows changes the tokens used."""
    rows = read(SCORED)
    prints = {rows.fingerprint}
    for mark in "xy":
        made = reshape(rows, method(lambda rows, mark=mark: [{**row, "prompt": mark} for row in rows]), None)
        prints.add(made.fingerprint)
        data = prepare(made, tokenizer, Settings().data, set(), tmp_path)
        assert tokenizer.decode(data[0].sequences["completion"][0].ids).startswith(mark)
    assert len(prints) == 3


def test_what_the_method_returns_is_checked():
    with pytest.raises(PluginError, match=r"Row 2 that posttrain_rows of 'made-up' returned: column 'score' is 'high'"):
        reshape(read(SCORED), method(lambda rows: [rows[0], {**rows[1], "score": "high"}]), None)
    with pytest.raises(PluginError, match=r"Row 1 .* column 'completion' is missing"):
        reshape(read(SCORED), method(lambda rows: [{"prompt": "p", "score": 1}]), None)
    with pytest.raises(DataError, match="'made-up' leaves none of 4 rows"):
        reshape(read(SCORED), method(lambda rows: []), None)


def test_streamed_rows_are_refused(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "p", "completion": "c", "score": 1}\n')
    with pytest.raises(SettingsError, match=r"looks at all rows before it learns from one\. Leave streaming out"):
        reshape(read([str(file)], streaming=True), method(lambda rows: rows), None)


def test_a_method_without_hook_and_roles_gets_the_rows_as_they_are():
    rows = read(SCORED)
    assert reshape(rows, method(), None) is rows


def test_roles_choose_the_samples_that_become_tokens(tokenizer):
    """alternative and retain: what is to be forgotten is not even tokenised."""
    rows = reshape(read(PAIRS, "forget-retain"), method(schema="forget-retain", roles=("alternative", "retain")), None)
    (example,) = prepare(rows, tokenizer, Settings().data, set(), None)
    assert list(example.sequences) == ["alternative", "retain"]
    (sequence,) = example.sequences["alternative"]
    assert tokenizer.decode(sequence.ids[sequence.trained]) == "a</s>"
    assert rows.fingerprint != read(PAIRS, "forget-retain").fingerprint


def test_a_third_answer_of_a_pair(tokenizer):
    """gold beside chosen and rejected; without the role it is no sequence, and no column that a loss would see."""
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c", "gold": "d"}]
    wanted = method(schema="preference", roles=("chosen", "rejected", "gold"))
    for asked, expected in (
        (wanted, ["chosen", "rejected", "gold"]),
        (method(schema="preference"), ["chosen", "rejected"]),
    ):
        (example,) = prepare(reshape(read(rows, "preference"), asked, None), tokenizer, Settings().data, set(), None)
        assert list(example.sequences) == expected
        assert "gold" not in example.columns


def test_a_missing_role_names_row_and_column():
    wanted = method(schema="forget-retain", roles=("retain_alternative",))
    with pytest.raises(DataError, match=r"row 1: column 'retain_alternative' is missing\. 'made-up' learns from"):
        reshape(read(PAIRS, "forget-retain"), wanted, None)


def test_samples_are_taken_apart_and_answered_in_their_form():
    talk = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]
    assert samples.split({"prompt": "p", "completion": "c"}) == ("p", "c")
    assert samples.split(talk) == (talk[:1], talk[1:])
    with pytest.raises(DataError, match="is plain text"):
        samples.split("some text")
    assert samples.answer("Q:", "A") == {"prompt": "Q:", "completion": " A"}
    assert samples.answer("Q: ", "A") == {"prompt": "Q: ", "completion": "A"}
    assert samples.answer(talk[:1], "A")["completion"] == [{"role": "assistant", "content": "A"}]
    assert samples.refusal("Q:", 12) == samples.refusal("Q:", 0) != samples.refusal("Q:", 1)
