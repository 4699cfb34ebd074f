"""Implicit process reward models against numbers worked by hand and the golden values."""

import math
from pathlib import Path

import pytest
from posttrain_testkit.goldens.compare import evaluate
from posttrain_testkit.numbers import loss_of

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "offline.json"


def test_by_hand():
    """beta rho = ln 3: -ln(3/4) for a right solution, -ln(1/4) for a wrong one."""
    lift = math.log(3) / 0.05
    inputs = {"policy_logp": [-1.0, -2.0], "ref_logp": [-1.0 - lift, -2.0 - lift], "label": [True, False]}
    found = loss_of(HERE, inputs)
    assert found.loss == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)
    assert found.gradients["policy_logp"] == pytest.approx([-0.05 / 8, 0.15 / 8])


def test_goldens():
    results = evaluate(GOLDENS, "implicit-prm-ce", [str(HERE)])
    assert [one.status for one in results] == ["equal"] * 1, [one.line() for one in results]
