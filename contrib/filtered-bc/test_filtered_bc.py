"""Filtered behaviour cloning against numbers worked by hand and the golden values."""

from pathlib import Path

import pytest
from posttrain_testkit.goldens.compare import evaluate
from posttrain_testkit.numbers import loss_of

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "offline.json"


def test_by_hand():
    """Scores 1, 3, 2, 5: their median is 2.5, so the rows of -2 and -6 are learnt."""
    inputs = {"policy_tok": [[-1.0], [-2.0], [-3.0], [-6.0]], "score": [1.0, 3.0, 2.0, 5.0]}
    assert loss_of(HERE, inputs, q=0.5).loss == pytest.approx(4)
    assert loss_of(HERE, inputs, q=0.0).loss == pytest.approx(3)


def test_goldens():
    results = evaluate(GOLDENS, "filtered-bc", [str(HERE)])
    assert [one.status for one in results] == ["equal"] * 1, [one.line() for one in results]
