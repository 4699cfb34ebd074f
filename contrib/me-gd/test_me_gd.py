import math

import pytest


def test_by_hand(loss_of):
    """Policy (3/4, 1/4): KL from (1/2, 1/2) = (ln(2/3) + ln 2) / 2 = 0.143841; its slope is policy less uniform."""
    inputs = {"policy_forget_logits": [[math.log(3.0), 0.0]], "forget_labels": [0], "retain_tok": [[-2.0]]}
    found = loss_of(inputs, forget_weight=1.0, retain_weight=0.5)
    assert found.loss == pytest.approx((math.log(2 / 3) + math.log(2)) / 2 + 1)
    assert found.gradients["policy_forget_logits"][0][0] == pytest.approx([0.25, -0.25])
