"""Pointwise DPO against numbers worked by hand and the golden values."""

import math
from pathlib import Path

import pytest
from posttrain_testkit.goldens.compare import evaluate
from posttrain_testkit.numbers import loss_of

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "offline.json"


def test_by_hand():
    """rho ln 3 and beta 1: -ln(3/4) for a good answer, -ln(1/4) for a bad one."""
    inputs = {"policy_logp": [-1.0, -2.0], "ref_logp": [-1.0 - math.log(3), -2.0 - math.log(3)], "label": [True, False]}
    found = loss_of(HERE, inputs, beta=1.0)
    assert found.loss == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)
    assert found.gradients["policy_logp"] == pytest.approx([-1 / 8, 3 / 8])


def test_goldens():
    results = evaluate(GOLDENS, "pointwise-dpo", [str(HERE)])
    assert [one.status for one in results] == ["equal"] * 1, [one.line() for one in results]
