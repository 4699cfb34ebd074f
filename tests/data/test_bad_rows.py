"""Every text that a bad row gets, exactly."""

import pytest
from posttrain.data import read_rows
from posttrain.errors import DataError
from posttrain.settings import Settings

PAIR = {"prompt": "p", "chosen": "c", "rejected": "r"}
ASK = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}

BAD_ROWS = [
    (
        "preference",
        {"prompt": "p", "chosen": "c"},
        "column 'rejected' is missing. Schema 'preference' needs prompt, chosen, rejected (text or messages). "
        "The row has: prompt, chosen. Name columns with: --columns rejected=NAME",
    ),
    (
        "prompt-completion",
        {"question": "p", "answer": "c"},
        "column 'prompt' is missing. Schema 'prompt-completion' needs prompt, completion (text or messages). "
        "The row has: question, answer. Name columns with: --columns prompt=NAME",
    ),
    ("prompt-completion", {"prompt": 7, "completion": "c"}, "column 'prompt' is 7, expected text or messages."),
    ("prompt-completion", {"prompt": None, "completion": "c"}, "column 'prompt' is null, expected text or messages."),
    (
        "prompt-completion",
        {"prompt": "p", "completion": ""},
        "column 'completion' is empty, expected at least one token to learn from.",
    ),
    (
        "prompt-completion",
        {"prompt": "p", "completion": []},
        "column 'completion' is empty, expected at least one message.",
    ),
    (
        "unpaired-preference",
        {"prompt": "p", "completion": "c", "label": "good"},
        "column 'label' is 'good', expected true or false.",
    ),
    ("preference", {**PAIR, "margin": "wide"}, "column 'margin' is 'wide', expected a finite number."),
    ("preference", {**PAIR, "margin": float("nan")}, "column 'margin' is NaN, expected a finite number."),
    ("preference", {**PAIR, "mine": float("nan")}, "column 'mine' has NaN, expected a finite number or null."),
    (
        "scored",
        {"prompt": "p", "completion": "c", "score": True},
        "column 'score' is True, expected a finite number.",
    ),
    (
        "language-modeling",
        {"messages": [ASK, {"role": "bot", "content": "a"}]},
        "column 'messages' has role 'bot' in message 2, expected one of system, developer, user, assistant, tool.",
    ),
    (
        "language-modeling",
        {"messages": [ASK]},
        "column 'messages' has no assistant message, expected at least one to learn from.",
    ),
    (
        "language-modeling",
        {"messages": [ASK, {"role": "assistant", "content": 3}]},
        "column 'messages' has content 3 in message 2, expected text.",
    ),
    ("language-modeling", {"text": ""}, "column 'text' is empty, expected text with at least one token to learn from."),
    (
        "prompt-completion",
        {"prompt": [ASK], "completion": [ANSWER, ASK]},
        "column 'completion' ends with a 'user' message, expected the assistant's.",
    ),
    (
        "prompt-completion",
        {"prompt": [ASK], "completion": [{"role": "assistant", "content": ""}]},
        "column 'completion' ends with an empty assistant message, expected at least one token to learn from.",
    ),
    (
        "prompt",
        {"prompt": [ASK, ANSWER]},
        "column 'prompt' ends with an 'assistant' message, expected the user's: the answer belongs into the "
        "completion.",
    ),
    ("prompt", {"prompt": ""}, "column 'prompt' is empty, expected text or messages."),
    (
        "preference",
        {"prompt": "p", "chosen": "c", "rejected": [ANSWER]},
        "column 'rejected' is messages, but 'chosen' is text, expected the same form.",
    ),
    (
        "preference",
        {"chosen": [ASK, ANSWER], "rejected": [{"role": "user", "content": "other"}, ANSWER]},
        "column 'chosen' differs from the other one at message 1, a 'user' message: the two have no common prompt. "
        "Expected the same messages before the assistant's answer.",
    ),
    (
        "stepwise",
        {"prompt": "p", "completions": ["a", "b"], "labels": [True]},
        "column 'labels' has 1 entries, expected 2, one per 'completions'.",
    ),
    (
        "stepwise",
        {"prompt": "p", "completions": ["a"], "labels": ["yes"]},
        "column 'labels' is wrong: its entry 1 is 'yes', expected a finite number.",
    ),
    (
        "ranked",
        {"prompt": "p", "completions": ["a", ""]},
        "column 'completions' is wrong: its entry 2 is empty, expected at least one token to learn from.",
    ),
    (
        "forget-retain",
        {"forget": {"prompt": "p"}, "retain": "x"},
        "column 'forget' has no 'completion', expected text, messages, or an object with prompt and completion.",
    ),
    (
        "prompt-completion",
        {"prompt": "p", "completion": "a\ud800b"},
        "column 'completion' has 'a\\ud800b', half of a character in UTF-16 (a lone surrogate), expected text.",
    ),
    (
        "prompt-completion",
        {"prompt": [{"role": "user", "content": "\udc00"}], "completion": [ANSWER]},
        "column 'prompt' has '\\udc00', half of a character in UTF-16 (a lone surrogate), expected text.",
    ),
    (
        "prompt-completion",
        {"prompt": "p", "completion": "c", "mine": ["x", "\ud834"]},
        "column 'mine' has '\\ud834', half of a character in UTF-16 (a lone surrogate), expected text.",
    ),
    (
        "scored",
        {"prompt": "p", "completion": "c", "score": 10**400},
        "column 'score' is a number of about 401 digits, expected a finite number.",
    ),
    (
        "preference",
        {**PAIR, "margin": -(10**400)},
        "column 'margin' is a number of about 401 digits, expected a finite number.",
    ),
    (
        "scored",
        {"prompt": "p", "completions": ["c", "d"], "scores": [1.0, 10**400]},
        "column 'scores' is wrong: its entry 2 is a number of about 401 digits, expected a finite number.",
    ),
    *(
        (
            "language-modeling",
            {"conversations": [{"from": "human", "value": "q"}, {"from": name, "value": "a"}]},
            f"column 'messages' has role {shown} in message 2, expected one of system, developer, user, assistant, "
            "tool.",
        )
        for name, shown in ((["gpt"], "['gpt']"), ({"a": 1}, "{'a': 1}"), (7, "7"))
    ),
    (
        "prompt-completion",
        {"prompt": "p", "completion": {"x": "y" * 100_000}},
        f"column 'completion' is {{'x': '{'y' * 50}..., expected text or messages.",
    ),
    (
        "prompt-completion",
        {"prompt": "p", "z" * 100_000: 1},
        "column 'completion' is missing. Schema 'prompt-completion' needs prompt, completion (text or messages). "
        f"The row has: prompt, {'z' * 37}.... Name columns with: --columns completion=NAME",
    ),
    (
        "language-modeling",
        {"messages": [ASK, ANSWER], "tools": "search"},
        "column 'tools' is 'search', expected a list of tool schemas (objects).",
    ),
]


@pytest.mark.parametrize(("schema", "row", "text"), BAD_ROWS)
def test_a_bad_row_is_named_by_file_line_and_column(write, schema, row, text):
    name = write("bad.jsonl", "", row)
    with pytest.raises(DataError) as caught:
        read_rows([name], (schema,), Settings().data)
    assert str(caught.value) == f"bad.jsonl line 2: {text}"


def test_the_second_row_is_checked_as_the_first(write):
    name = write("pairs.jsonl", PAIR, {"prompt": "p", "chosen": "c"})
    with pytest.raises(DataError, match=r"^pairs.jsonl line 2: column 'rejected' is missing\. Schema 'preference'"):
        read_rows([name], ("preference",), Settings().data)
