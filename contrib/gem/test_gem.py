import math

import pytest


def test_by_hand(loss_of):
    """Logits (ln 3, 0), label 1, beta 1: q = (3/4, 1/4), so -3/4 (0 - ln 3); the gradient is q less one-hot."""
    found = loss_of({"logits": [[math.log(3.0), 0.0]], "labels": [1]}, beta=1.0)
    assert found.loss == pytest.approx(0.75 * math.log(3))
    assert found.gradients["logits"][0][0] == pytest.approx([0.75, -0.75])
