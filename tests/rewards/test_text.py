import pytest
from posttrain.errors import RewardError, SettingsError
from posttrain.rewards.text import exact, format, length, regex


def words(text, add_special_tokens):
    assert not add_special_tokens
    return {"input_ids": text.split("-")}


def test_regex_is_found_anywhere():
    assert regex(["the Answer", "answers", "no"], r"(?i)\banswer\b") == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        ("<think>a\nb</think><answer>4</answer>", 1.0),
        ("  <think></think>\n\n<answer>4</answer>\n", 1.0),
        ("<think>a</think><answer>4</answer> done", 0.0),
        ("well <think>a</think><answer>4</answer>", 0.0),
        ("<answer>4</answer><think>a</think>", 0.0),
        ("<think>a</think><answer>4</answer><answer>5</answer>", 0.0),
        ("<think>a <think>b</think></think><answer>4</answer>", 0.0),
        ("<think>a</think><answer>4", 0.0),
        ("4", 0.0),
        ("", 0.0),
    ],
)
def test_format_wants_one_thought_and_one_answer(completion, score):
    assert format([completion]) == [score]


def test_format_takes_another_pattern():
    assert format(["Answer: 4\n", "4"], pattern=r"Answer: \d") == [1.0, 0.0]


def test_length_in_its_units():
    """Target 4: 'a-b c' has 2 tokens, 2 words, 5 characters: off by 2/4, 2/4, 1/4."""
    assert length(["a-b c"], target=4, tokenizer=words) == [-0.5]
    assert length(["a-b c"], target=4, unit="words") == [-0.5]
    assert length(["a-b c"], target=4, unit="characters") == [-0.25]


def test_length_falls_from_the_limit_to_twice_the_limit():
    texts = ["", "x" * 10, "x" * 15, "x" * 20, "x" * 90]
    assert length(texts, limit=10, unit="characters") == [0, 0, -0.5, -1, -1]
    assert length(["x" * 90], target=10, unit="characters") == [-1.0]


def test_exact_is_stripped_and_skips_rows_without_answer():
    assert exact([" 42\n", "42.", "x", "7"], answer=["42", "42", None, 7]) == [1.0, 0.0, None, 1.0]


NEEDS_ONE = "exactly one is needed. Give it with --reward-options length.limit=200."


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: length([""]), f"Reward 'length' has target None and limit None, {NEEDS_ONE}"),
        (lambda: length([""], 1, 2), f"Reward 'length' has target 1 and limit 2, {NEEDS_ONE}"),
        (lambda: length([""], limit=0), "Reward 'length' has limit 0. It must be 1 or more."),
        (
            lambda: length([""], 1, unit="lines"),
            "Reward 'length' has unit 'lines'. Units: tokens, words, characters.",
        ),
        (
            lambda: regex([""], "(a"),
            "Reward 'regex': the pattern '(a' is not a regular expression: missing ), unterminated subpattern at "
            "position 0.",
        ),
    ],
)
def test_impossible_options_say_what_to_do(call, text):
    with pytest.raises(SettingsError) as caught:
        call()
    assert str(caught.value) == text


def test_tokens_cannot_be_counted_without_a_tokenizer():
    with pytest.raises(RewardError) as caught:
        length([""], 1)
    assert str(caught.value) == (
        "Reward 'length' counts tokens and has no tokenizer here. Use --reward-options length.unit=words."
    )
