import math

import pytest


def test_by_hand(loss_of):
    """Policy (3/4, 1/4), reference (1/2, 1/2), the token is the second: -ln(1/4) / 4 + 0.143841."""
    inputs = {"logits": [[math.log(3.0), 0.0]], "ref_logits": [[0.0, 0.0]], "labels": [1]}
    found = loss_of(inputs, kl_weight=1.0)
    assert found.loss == pytest.approx(math.log(4) / 4 + 0.143841, abs=1e-6)
    # a quarter of (policy less one-hot), and (policy less reference)
    assert found.gradients["logits"][0][0] == pytest.approx([0.1875 + 0.25, -0.1875 - 0.25])
