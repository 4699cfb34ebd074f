import math

import pytest


def test_by_hand(loss_of):
    """p = 1/2, gamma = 1/2: w = (1/2) / (3/4) = 2/3. With gamma 0 the weight is 1, with 1 it is p."""
    tokens = {"policy_tok": [[math.log(0.5)]]}
    found = loss_of(tokens, gamma=0.5)
    assert found.loss == pytest.approx(2 / 3 * math.log(2))
    assert found.gradients["policy_tok"][0] == pytest.approx([-2 / 3])
    assert loss_of(tokens, gamma=0.0).loss == pytest.approx(math.log(2))
    assert loss_of(tokens, gamma=1.0).loss == pytest.approx(math.log(2) / 2)
    assert loss_of(tokens, gamma=1.0, w_min=0.8).loss == pytest.approx(0.8 * math.log(2))
