import math

import pytest


def test_by_hand(loss_of):
    """Policy (3/4, 1/4), reference (1/2, 1/2): KL 0.143841; the token is the first: -ln(3/4) = 0.287682."""
    inputs = {"logits": [[math.log(3.0), 0.0]], "ref_logits": [[0.0, 0.0]], "labels": [0]}
    found = loss_of(inputs, kl_weight=2.0)
    assert found.loss == pytest.approx(0.287682 + 2 * 0.143841, abs=1e-6)
    # likelihood: policy less one-hot; divergence: policy less reference
    assert found.gradients["logits"][0][0] == pytest.approx([-0.25 + 0.5, 0.25 - 0.5])
