import sys
import threading
from decimal import Decimal

import pytest
from posttrain.errors import DependencyError, RewardError
from posttrain.rewards.verifiers import final_number, gsm8k, math


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("5 + 6 = 11\n#### 11", "11"),
        ("#### 1,234,567", "1234567"),
        ("The total is $1,234.50.", "1234.50"),
        ("#### $-3", "-3"),
        ("#### -$3", "-3"),
        ("so 10-3=7", "7"),
        ("a 5-7 range", "7"),
        ("x = -5", "-5"),
        ("it is −7 degrees", "-7"),
        ("(-3)", "-3"),
        ("numbers 3,4,5", "5"),
        ("50%", "50"),
        ("**18**!", "18"),
        ("\\boxed{1{,}000}", "1000"),
        ("costs \\$20", "20"),
        ("half is .5", "0.5"),
        ("#### 42\n\nQuestion: 3 apples", "42"),
        ("#### 1\n#### 2", "2"),
    ],
)
def test_final_number(text, number):
    assert final_number(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "none", "12 then #### nothing"])
def test_no_final_number(text):
    assert final_number(text) is None


def test_gsm8k_compares_values_not_texts():
    answers = ["work\n#### 1,000", "#### 18", "#### 18", "#### 18", "no number", None, 72]
    completions = ["it is $1000.00.", "#### 18.5", "18 dollars for 2", "I cannot say", "5", "5", "72"]
    assert gsm8k(completions, answers) == [1.0, 0.0, 0.0, 0.0, None, None, 1.0]


def test_math_compares_expressions():
    pytest.importorskip("math_verify")
    cases = [
        ("so it is $\\frac{1}{2}$", "0.5", 1.0),
        ("\\boxed{x^2+1}", "$1+x^2$", 1.0),
        ("0.5", "\\frac{1}{2}", 1.0),
        ("The answer is 42", "42", 1.0),
        ("The answer is 43", "42", 0.0),
        ("I don't know", "42", 0.0),
        ("1", "words only", None),
        ("1", None, None),
    ]
    completions, answers, expected = (list(column) for column in zip(*cases, strict=True))
    assert math(completions, answer=answers) == expected
    assert math(completions[:1], solution=["\\boxed{1/2}"]) == [1.0]


def test_math_works_outside_the_main_thread():
    """math-verify's own time limit is a signal, which other threads cannot have."""
    pytest.importorskip("math_verify")
    results = []
    thread = threading.Thread(target=lambda: results.append(math(["$2$"], answer=["2"])))
    thread.start()
    thread.join()
    assert results == [[1.0]]


def test_math_errors(monkeypatch):
    with pytest.raises(RewardError) as caught:
        math(["1"])
    assert str(caught.value) == (
        "Reward 'math' needs a column 'answer' or 'solution'. Rename a column with --columns answer=COLUMN."
    )
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(DependencyError) as missing:
        math(["1"], answer=["1"])
    assert str(missing.value) == (
        "Reward 'math' needs the package math-verify. Install it with: pip install 'posttrain[math]'"
    )
