"""A-LoL without a reference against numbers worked by hand and the golden values."""

from pathlib import Path

import posttrain_method_a_lol_ref_free as free
import pytest
from posttrain_testkit.goldens.compare import evaluate
from posttrain_testkit.numbers import loss_of

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "offline.json"


def test_by_hand():
    found = loss_of(HERE, {"policy_tok": [[-1.0, -2.0], [-4.0]], "advantage": [0.5, 0.0], "score": [1.0, 0.0]})
    assert found.loss == pytest.approx(0.75)
    assert found.gradients["policy_tok"][0] == pytest.approx([-0.25, -0.25])


def test_advantages_are_over_the_value_and_never_negative():
    rows = [
        {"score": 1.0, "group_scores": [1.0, 0.0]},
        {"score": 0.0, "group_scores": [1.0, 0.0]},
        {"score": 1.0, "value": 0.25},
        {"score": 1.0, "advantage": 7.0},
    ]
    assert [row["advantage"] for row in free.posttrain_rows(rows)] == [0.5, 0, 0.75, 7]


def test_goldens():
    results = evaluate(GOLDENS, "a-lol-ref-free", [str(HERE)])
    assert [one.status for one in results] == ["equal"] * 1, [one.line() for one in results]
