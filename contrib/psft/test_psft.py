import math

import pytest


def test_by_hand(loss_of):
    """Ratios 1, 1.5 (clipped at 1.2) and 0.5 (not clipped: it may always come back)."""
    tokens = [-1.0, -2.0, -3.0]
    snapshot = [-1.0, -2.0 - math.log(1.5), -3.0 + math.log(2)]
    found = loss_of({"policy_tok": [tokens], "ref_tok": [snapshot]})
    assert found.loss == pytest.approx(-(1 + 1.2 + 0.5) / 3)
    assert found.gradients["policy_tok"][0] == pytest.approx([-1 / 3, 0, -0.5 / 3])
    assert found.metrics["clipped"].values.tolist() == [[0, 1, 0]]


def test_at_a_snapshot_the_gradient_is_that_of_likelihood(loss_of):
    found = loss_of({"policy_tok": [[-1.0, -2.0]], "ref_tok": [[-1.0, -2.0]]})
    assert found.loss == pytest.approx(-1)
    assert found.gradients["policy_tok"][0] == pytest.approx([-0.5, -0.5])
