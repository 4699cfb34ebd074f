import pytest
from posttrain_testkit.by_hand import POLICY, REFERENCE, logsig


def test_by_hand(call_loss):
    """0.3 * 1.5 = 0.45; 0.3 * (-0.75 - 50 * 0.5) = -7.725: 0.493249 and 7.725442."""
    loss, metrics = call_loss(POLICY, REFERENCE)
    assert loss.tolist() == pytest.approx([0.493249, 7.725442], abs=1e-6)
    assert metrics["penalty"].tolist() == pytest.approx([0, 0.5])


def test_no_penalty_is_dpo(call_loss):
    assert call_loss(POLICY, REFERENCE, penalty_weight=0.0, beta=0.1)[0].tolist() == pytest.approx(
        [-logsig(0.15), -logsig(-0.075)]
    )
