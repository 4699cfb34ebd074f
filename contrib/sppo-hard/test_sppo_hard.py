import pytest
from posttrain_testkit.by_hand import POLICY, REFERENCE


def test_by_hand(call_loss):
    """Targets 5 and -5: (1 - 5)^2 + (-0.5 + 5)^2 = 36.25; (-0.5 - 5)^2 + (0.25 + 5)^2 = 57.8125."""
    assert call_loss(POLICY, REFERENCE, beta=0.1)[0].tolist() == pytest.approx([36.25, 57.8125])


def test_equal_models_pay_the_targets(call_loss):
    """At the first step both log-ratios are 0: 2 * 500^2."""
    assert call_loss(POLICY, POLICY)[0].tolist() == pytest.approx([500000, 500000])
