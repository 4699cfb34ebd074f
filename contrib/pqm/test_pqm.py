"""The process Q-value model against numbers worked by hand and the golden values."""

import math
from pathlib import Path

import pytest
from posttrain_testkit.goldens.compare import evaluate
from posttrain_testkit.numbers import loss_of

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "offline.json"


def test_by_hand():
    """Q = 0 of a right step, -zeta of a wrong one: ln((1 + 1 + 1) / 1) and ln((1 + 1) / 1)."""
    found = loss_of(HERE, {"scores": [[0.0, -4.0]], "step_label": [[1.0, 0.0]]})
    assert found.loss == pytest.approx((math.log(3) + math.log(2)) / 2)


def test_right_steps_alone_rise_from_the_root():
    """Q = ln 2 and ln 3: ln(3 / 2) and ln(6 / 3)."""
    found = loss_of(HERE, {"scores": [[math.log(2), math.log(3)]], "step_label": [[1.0, 1.0]]})
    assert found.loss == pytest.approx((math.log(1.5) + math.log(2)) / 2)
    assert found.metrics["q_bad"].mask.any().item() is False


def test_goldens():
    results = evaluate(GOLDENS, "pqm", [str(HERE)])
    assert [one.status for one in results] == ["equal"] * 1, [one.line() for one in results]
