"""SatImp against numbers worked by hand and the golden values."""

import math
from pathlib import Path

import pytest
from posttrain_testkit.goldens.compare import evaluate
from posttrain_testkit.numbers import loss_of

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "offline.json"


def test_by_hand():
    """p = 1/2 with powers 2 and 1: 1/8. p = 1/4: 3/64."""
    inputs = {"forget_tok": [[math.log(0.5), math.log(0.25)]], "retain_tok": [[-1.0]]}
    found = loss_of(HERE, inputs, saturation=2.0, forget_weight=1.0, retain_weight=0.0)
    assert found.loss == pytest.approx((math.log(0.5) / 8 + 3 / 64 * math.log(0.25)) / 2)
    assert found.gradients["forget_tok"][0] == pytest.approx([1 / 16, 3 / 128])


def test_without_powers_it_is_gradient_ascent():
    inputs = {"forget_tok": [[-1.0, -5.0]], "retain_tok": [[-1.0]]}
    options = {"saturation": 0.0, "importance": 0.0, "forget_weight": 1.0, "retain_weight": 0.0}
    assert loss_of(HERE, inputs, **options).loss == pytest.approx(-3)


def test_goldens():
    results = evaluate(GOLDENS, "sat-imp", [str(HERE)])
    assert [one.status for one in results] == ["equal"] * 1, [one.line() for one in results]
