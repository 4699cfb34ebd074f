import math

import pytest


def test_by_hand(loss_of):
    """Probabilities (1/2, 1/3, 1/6), the last to be forgotten: 1 + 1/6 - 1/2 = 2/3."""
    inputs = {
        "policy_forget_logits": [[math.log(3.0), math.log(2.0), 0.0]],
        "forget_labels": [2],
        "retain_tok": [[-2.0, -4.0]],
    }
    found = loss_of(inputs, retain_weight=0.5)
    assert found.loss == pytest.approx(2 / 3 + 1.5)
    # d(p2 - p0): p2 (e2 - p) - p0 (e0 - p)
    wanted = [-1 / 12 - 1 / 4, -1 / 18 + 1 / 6, 5 / 36 + 1 / 12]
    assert found.gradients["policy_forget_logits"][0][0] == pytest.approx(wanted)
