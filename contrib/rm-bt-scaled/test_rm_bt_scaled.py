"""Scaled Bradley-Terry against numbers worked by hand and the golden values."""

import math
from pathlib import Path

import pytest
from posttrain_testkit.goldens.compare import evaluate
from posttrain_testkit.numbers import loss_of

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "offline.json"


def test_by_hand():
    """Differences ln 3 and 0 with strengths 2 and 1: (2 ln(4/3) + ln 2) / 2."""
    inputs = {"reward_chosen": [math.log(3), 0.5], "reward_rejected": [0.0, 0.5], "strength": [2.0, 1.0]}
    found = loss_of(HERE, inputs)
    assert found.loss == pytest.approx((2 * math.log(4 / 3) + math.log(2)) / 2)
    assert found.gradients["reward_chosen"] == pytest.approx([-0.25, -0.25])
    del inputs["strength"]
    assert loss_of(HERE, inputs).loss == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)


def test_goldens():
    results = evaluate(GOLDENS, "rm-bt-scaled", [str(HERE)])
    assert [one.status for one in results] == ["equal"] * 1, [one.line() for one in results]
