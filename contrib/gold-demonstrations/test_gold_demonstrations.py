"""GOLD against numbers worked by hand and the shared golden values."""

import math
from pathlib import Path

import pytest
from posttrain.testing.goldens import evaluate
from posttrain.testing.numbers import loss_of

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / ".." / "shared" / "methods" / "goldens-offline.json"


def test_by_hand():
    """Reference 1/2 and 1/4, horizon 1, gamma 1: Q = 3/4 and 1/4 + 1; policy 1/2 and, below u_min, 0.1."""
    inputs = {
        "policy_tok": [[math.log(0.5), math.log(0.01)]],
        "ref_tok": [[math.log(0.5), math.log(0.25)]],
    }
    found = loss_of(HERE, inputs, horizon=1)
    assert found.loss == pytest.approx((0.375 * math.log(2) + 0.125 * math.log(100)) / 2)
    assert found.gradients["policy_tok"][0] == pytest.approx([-0.1875, -0.0625])


def test_log_probabilities_as_reward():
    """log-probs -1 and -9 against the baseline -5: 4, and -4 that counts as 0."""
    inputs = {"policy_tok": [[0.0, -1.0]], "ref_tok": [[-1.0, -9.0]]}
    found = loss_of(HERE, inputs, horizon=0, measure="logp")
    assert found.gradients["policy_tok"][0] == pytest.approx([-2, 0])


@pytest.mark.skipif(not GOLDENS.exists(), reason="the shared golden values are not here")
def test_goldens():
    results = evaluate(GOLDENS, "gold-demonstrations", [str(HERE)])
    assert [one.status for one in results] == ["equal"] * 1, [one.line() for one in results]
