import pytest
from posttrain_testkit.by_hand import POLICY, REFERENCE, logsig


def test_by_hand(call_loss):
    """-1 + 0.5 * 1.2 = -0.4: log(1 + e^0.4) = 0.913015; -0.8 + 0.5 * 0.7 = -0.45."""
    loss, _ = call_loss(POLICY, REFERENCE)
    assert loss["preference"].tolist() == pytest.approx([0.913015, -logsig(-0.45)], abs=1e-6)
    assert "nll" not in loss


def test_discount_and_likelihood(call_loss):
    """Of -1, -2, -3, -4 at half the weight each time: -1 - 1 - 0.75 - 0.5 = -3.25."""
    loss, metrics = call_loss(POLICY, REFERENCE, gamma=0.5, sft_weight=0.2)
    rejected = -1 - 1.25 - 0.5 - 3.5 / 8 - 3 / 16
    assert metrics["margin"][0].item() == pytest.approx(0.1 * (-3.25 - rejected))
    assert loss["nll"].tolist() == pytest.approx([0.1 * (2.5 + 2.4), 0.1 * (2 + 1.4)])
