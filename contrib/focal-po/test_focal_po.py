import math

import pytest
from posttrain_testkit.by_hand import POLICY, REFERENCE, logsig


def test_by_hand(call_loss):
    """p = 0.537430: 0.537430^0.05 * 0.620957 = 0.969429 * 0.620957 = 0.601974."""
    loss, metrics = call_loss(POLICY, REFERENCE)
    expected = [-(math.exp(logsig(z)) ** 0.05) * logsig(z) for z in (0.15, -0.075)]
    assert loss.tolist() == pytest.approx(expected)
    assert loss[0].item() == pytest.approx(0.601974, abs=1e-6)
    assert metrics["factor"][0].item() == pytest.approx(0.537430**0.05, abs=1e-6)


def test_power_of_nothing_is_dpo(call_loss):
    assert call_loss(POLICY, REFERENCE, gamma=0.0)[0].tolist() == pytest.approx([-logsig(0.15), -logsig(-0.075)])
