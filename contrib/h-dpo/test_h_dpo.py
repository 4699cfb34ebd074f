import pytest
from posttrain_testkit.by_hand import POLICY, REFERENCE, logsig


def test_by_hand(call_loss):
    """0.8 * 2 - 0.5 = 1.1 and 0.8 * -1 + 0.25 = -0.55, a tenth of each: 0.639659."""
    loss, _ = call_loss(POLICY, REFERENCE, alpha=0.8, beta=0.1)
    assert loss.tolist() == pytest.approx([0.639659, -logsig(-0.055)], abs=1e-6)


def test_full_entropy_is_dpo(call_loss):
    assert call_loss(POLICY, REFERENCE, alpha=1.0, beta=0.1)[0].tolist() == pytest.approx(
        [-logsig(0.15), -logsig(-0.075)]
    )
