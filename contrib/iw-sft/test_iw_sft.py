"""Importance-weighted fine-tuning against numbers worked by hand and the golden values."""

import math
from pathlib import Path

import pytest
from posttrain_testkit.goldens.compare import evaluate
from posttrain_testkit.numbers import loss_of

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "offline.json"


def test_by_hand():
    """Mean log-ratio 1 over two tokens: weight e. The other row equals its reference: weight 1. Three tokens in all."""
    inputs = {"policy_tok": [[-1.0, -2.0], [-3.0]], "ref_tok": [[-2.0, -3.0], [-3.0]]}
    found = loss_of(HERE, inputs)
    assert found.loss == pytest.approx((3 * math.e + 3) / 3)
    assert found.gradients["policy_tok"][0] == pytest.approx([-math.e / 3] * 2)
    assert loss_of(HERE, inputs, largest_weight=2.0).loss == pytest.approx(3)
    assert loss_of(HERE, inputs, sharpness=0.0).loss == pytest.approx(2)


def test_goldens():
    results = evaluate(GOLDENS, "iw-sft", [str(HERE)])
    assert [one.status for one in results] == ["equal"] * 1, [one.line() for one in results]
