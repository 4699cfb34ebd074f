import math

import pytest


def test_by_hand(loss_of):
    """p = 1/2: 1 - p = 1/2; with alpha 2 (1 - 1/4) / 2 = 3/8. The gradient by log p is -p^alpha."""
    tokens = {"policy_tok": [[math.log(0.5)]]}
    assert loss_of(tokens).loss == pytest.approx(0.5)
    found = loss_of(tokens, alpha=2.0)
    assert found.loss == pytest.approx(0.375)
    assert found.gradients["policy_tok"][0] == pytest.approx([-0.25])
    assert loss_of(tokens, alpha=1e-6).loss == pytest.approx(math.log(2), abs=1e-5)
