import math

import pytest


def test_by_hand(loss_of):
    """Scores ln 3 and 0: weights 1.5 and 0.5 on means -2 and -4."""
    inputs = {"policy_tok": [[-1.0, -3.0], [-4.0]], "score": [math.log(3.0), 0.0]}
    found = loss_of(inputs)
    assert found.loss == pytest.approx((1.5 * 2 + 0.5 * 4) / 2)
    assert found.gradients["policy_tok"][0] == pytest.approx([-0.375, -0.375])
    assert loss_of(inputs, largest_weight=1.0).loss == pytest.approx((2 + 2) / 2)


def test_a_constant_in_the_scores_changes_nothing(loss_of):
    tokens = {"policy_tok": [[-1.0], [-4.0]]}
    assert loss_of(tokens | {"score": [1.0, 2.0]}).loss == pytest.approx(
        loss_of(tokens | {"score": [101.0, 102.0]}).loss
    )
