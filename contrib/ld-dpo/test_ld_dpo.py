import pytest
from posttrain_testkit.by_hand import POLICY, REFERENCE, logsig


def test_by_hand(call_loss):
    """The fifth rejected token, -0.5 and 0.25 against the reference, counts half: 0.1 * (1 - (-0.5 + 0.25)) = 0.125."""
    loss, metrics = call_loss(POLICY, REFERENCE)
    assert metrics["margin"].tolist() == pytest.approx([0.125, 0.1 * (-0.5 - 0.125)])
    assert loss.tolist() == pytest.approx([0.632599, -logsig(-0.0625)], abs=1e-6)


def test_full_weight_is_dpo(call_loss):
    assert call_loss(POLICY, REFERENCE, alpha=1.0)[0].tolist() == pytest.approx([-logsig(0.15), -logsig(-0.075)])
