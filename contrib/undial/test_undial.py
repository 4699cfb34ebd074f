import math

import pytest


def test_by_hand(loss_of):
    """Original (3/4, 1/4), ln 3 off the first: target (1/2, 1/2). Policy (1/2, 1/2): ln 2, and no slope."""
    inputs = {
        "policy_forget_logits": [[0.0, 0.0]],
        "ref_forget_logits": [[math.log(3.0), 0.0]],
        "forget_labels": [0],
        "retain_tok": [[-2.0]],
    }
    found = loss_of(inputs, beta=math.log(3.0))
    assert found.loss == pytest.approx(math.log(2))
    assert found.gradients["policy_forget_logits"][0][0] == pytest.approx([0, 0], abs=1e-12)
    assert loss_of(inputs, beta=math.log(3.0), retain_weight=0.5).loss == pytest.approx(math.log(2) + 1)
