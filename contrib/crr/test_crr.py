"""Critic-regularised regression against numbers worked by hand and the golden values."""

import math
from pathlib import Path

import pytest
from posttrain_testkit.goldens.compare import evaluate
from posttrain_testkit.numbers import loss_of

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "offline.json"


def test_by_hand():
    """Advantages ln 2 and -ln 2 on means -2 and -4: binary 2 / 2, exp (2 * 2 + 4 / 2) / 2."""
    inputs = {
        "policy_tok": [[-1.0, -3.0], [-4.0]],
        "score": [1 + math.log(2), 1 - math.log(2)],
        "value": [1.0, 1.0],
    }
    assert loss_of(HERE, inputs).loss == pytest.approx(1)
    found = loss_of(HERE, inputs, variant="exp")
    assert found.loss == pytest.approx(3)
    assert found.gradients["policy_tok"][0] == pytest.approx([-0.5, -0.5])
    assert loss_of(HERE, inputs, variant="exp", beta=0.01).loss == pytest.approx(20)


def test_goldens():
    results = evaluate(GOLDENS, "crr", [str(HERE)])
    assert [one.status for one in results] == ["equal"] * 1, [one.line() for one in results]
