"""APO-zero on single answers against numbers worked by hand and the golden values."""

import math
from pathlib import Path

import pytest
from posttrain_testkit.goldens.compare import evaluate
from posttrain_testkit.numbers import loss_of

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "offline.json"


def test_by_hand():
    """rho ln 3 and beta 1: sigmoid 3/4. Good 1/4, bad twice 3/4; slope p (1 - p) = 3/16."""
    inputs = {"policy_logp": [-1.0, -2.0], "ref_logp": [-1.0 - math.log(3), -2.0 - math.log(3)], "label": [True, False]}
    found = loss_of(HERE, inputs, beta=1.0, undesirable_weight=2.0)
    assert found.loss == pytest.approx((0.25 + 1.5) / 2)
    assert found.gradients["policy_logp"] == pytest.approx([-3 / 32, 6 / 32])


def test_at_the_reference_every_answer_costs_one_half():
    inputs = {"policy_logp": [-1.0, -2.0], "ref_logp": [-1.0, -2.0], "label": [True, False]}
    assert loss_of(HERE, inputs).loss == 0.5


def test_goldens():
    results = evaluate(GOLDENS, "kto-apo-zero", [str(HERE)])
    assert [one.status for one in results] == ["equal"] * 1, [one.line() for one in results]
