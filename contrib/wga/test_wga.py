"""Weighted gradient ascent against numbers worked by hand and the golden values."""

import math
from pathlib import Path

import pytest
from posttrain_testkit.goldens.compare import evaluate
from posttrain_testkit.numbers import loss_of

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "offline.json"


def test_by_hand():
    """Probabilities 1/2 and 1/4 squared weigh 1/4 and 1/16, over two tokens; the weights have no gradient."""
    inputs = {"forget_tok": [[math.log(0.5), math.log(0.25)]], "retain_tok": [[-1.0]]}
    found = loss_of(HERE, inputs, beta=2.0, retain_weight=3.0)
    assert found.loss == pytest.approx((0.25 * math.log(0.5) + 0.0625 * math.log(0.25)) / 2 + 3)
    assert found.gradients["forget_tok"][0] == pytest.approx([0.125, 0.03125])


def test_beta_zero_is_gradient_ascent():
    found = loss_of(HERE, {"forget_tok": [[-1.0, -5.0]], "retain_tok": [[-1.0]]}, beta=0.0, retain_weight=0.0)
    assert found.loss == pytest.approx(-3)


def test_goldens():
    results = evaluate(GOLDENS, "wga", [str(HERE)])
    assert [one.status for one in results] == ["equal"] * 1, [one.line() for one in results]
