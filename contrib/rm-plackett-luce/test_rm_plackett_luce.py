"""The Plackett-Luce reward model against numbers worked by hand and the golden values."""

import math
from pathlib import Path

import pytest
from posttrain_testkit.goldens.compare import evaluate
from posttrain_testkit.numbers import loss_of

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "offline.json"


def test_by_hand():
    """Scores ln 3, ln 2, 0: the first with probability 3/6, then the second with 2/3."""
    found = loss_of(HERE, {"rewards": [math.log(3), math.log(2), 0.0]})
    assert found.loss == pytest.approx(math.log(2) + math.log(1.5))
    assert loss_of(HERE, {"rewards": [math.log(3), math.log(2), 0.0]}, per_choice=True).loss == pytest.approx(
        (math.log(2) + math.log(1.5)) / 2
    )


def test_two_answers_are_bradley_terry():
    found = loss_of(HERE, {"rewards": [math.log(3), 0.0]})
    assert found.loss == pytest.approx(math.log(4 / 3))
    assert found.metrics["accuracy"].tolist() == [1]


def test_goldens():
    results = evaluate(GOLDENS, "rm-plackett-luce", [str(HERE)])
    assert [one.status for one in results] == ["equal"] * 1, [one.line() for one in results]
