import math

import pytest


def test_by_hand(loss_of):
    """Reference (1/2, 1/2), policy (3/4, 1/4): KL = ln(1/2) - (ln(3/4) + ln(1/4)) / 2 = 0.143841; forget mean -2."""
    three_to_one = [[math.log(3.0), 0.0]]
    inputs = {
        "forget_tok": [[-1.0, -3.0]],
        "forget_ref_tok": [[-1.0, -1.0]],
        "policy_retain_logits": three_to_one,
        "ref_retain_logits": [[0.0, 0.0]],
        "retain_labels": [0],
    }
    found = loss_of(inputs, retain_weight=2.0)
    assert found.loss == pytest.approx(-2 + 2 * 0.143841, abs=1e-6)
    # the gradient of KL(reference || policy) by the logits is policy - reference
    assert found.gradients["policy_retain_logits"][0][0] == pytest.approx([0.5, -0.5])
