import math

import pytest


def test_by_hand(loss_of):
    """Advantages ln 2 and -ln 2 on means -2 and -4: binary 2 / 2, exp (2 * 2 + 4 / 2) / 2."""
    inputs = {
        "policy_tok": [[-1.0, -3.0], [-4.0]],
        "score": [1 + math.log(2), 1 - math.log(2)],
        "value": [1.0, 1.0],
    }
    assert loss_of(inputs).loss == pytest.approx(1)
    found = loss_of(inputs, variant="exp")
    assert found.loss == pytest.approx(3)
    assert found.gradients["policy_tok"][0] == pytest.approx([-0.5, -0.5])
    assert loss_of(inputs, variant="exp", beta=0.01).loss == pytest.approx(20)
