import math

import pytest


def test_by_hand(loss_of):
    """Of three tokens the likeliest two, (1/2, 1/2) among themselves: H = ln 2; the token has probability 2/5."""
    inputs = {"logits": [[math.log(2.0), math.log(2.0), 0.0]], "labels": [0]}
    found = loss_of(inputs, likeliest_tokens=2, alpha=2.0)
    weight = (math.log(2) / 3) ** 2
    assert found.loss == pytest.approx(weight * math.log(2.5))
    assert found.gradients["logits"][0][0] == pytest.approx([-0.6 * weight, 0.4 * weight, 0.2 * weight])
    assert loss_of(inputs, alpha=0.0).loss == pytest.approx(math.log(2.5))
