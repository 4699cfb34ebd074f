"""MixCE against numbers worked by hand and the golden values."""

import math
from pathlib import Path

import pytest
from posttrain_testkit.goldens.compare import evaluate
from posttrain_testkit.numbers import loss_of

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "offline.json"


def test_by_hand():
    """p = 1/2, eta = 1/4: the factor is 1/4 + 3/8 = 5/8."""
    found = loss_of(HERE, {"policy_tok": [[math.log(0.5)]]}, eta=0.25)
    assert found.loss == pytest.approx(0.625 * math.log(2))
    assert found.gradients["policy_tok"][0] == pytest.approx([-0.625])


def test_goldens():
    results = evaluate(GOLDENS, "mixce", [str(HERE)])
    assert [one.status for one in results] == ["equal"] * 1, [one.line() for one in results]
