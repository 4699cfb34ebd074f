import math

import pytest
from posttrain_testkit.by_hand import POLICY, REFERENCE


def test_by_hand(call_loss):
    """q = sigmoid(0.15) = 0.537430: q log(q / 0.999) + (1 - q) log((1 - q) / 0.001) = 2.505517."""
    q = 1 / (1 + math.exp(-0.15))
    assert call_loss(POLICY, REFERENCE)[0][0].item() == pytest.approx(
        q * math.log(q / 0.999) + (1 - q) * math.log((1 - q) / 0.001)
    )
    assert call_loss(POLICY, REFERENCE)[0][0].item() == pytest.approx(2.505517, abs=1e-6)


def test_least_where_the_policy_is_as_sure_as_the_label(call_loss):
    """At a margin of log(0.8 / 0.2) a label of 0.8 is met: the divergence is 0, and positive elsewhere."""
    met = math.log(4) / 1.5
    assert call_loss(POLICY, REFERENCE, beta=met, label_smoothing=0.2)[0][0].item() == pytest.approx(0, abs=1e-12)
    assert all(call_loss(POLICY, REFERENCE, beta=met + shift, label_smoothing=0.2)[0][0] > 0 for shift in (-0.3, 0.3))
