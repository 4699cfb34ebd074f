import pytest
from posttrain.contract.views import Step
from posttrain_testkit.by_hand import POLICY, REFERENCE, logsig


def test_by_hand(call_loss):
    """0.1 * (1 + 0.75 * 0.5) = 0.1375: log(1 + e^-0.1375) = 0.626759."""
    assert call_loss(POLICY, REFERENCE)[0].tolist() == pytest.approx(
        [0.626759, -logsig(0.1 * (-0.5 - 0.75 * 0.25))], abs=1e-6
    )


def test_weight_goes_in_a_straight_line(call_loss):
    """From 0.5 to 1 over steps 0 to 10."""
    for number, expected in ((0, 0.5), (5, 0.75), (10, 1.0)):
        step = Step(number, 11)
        _, metrics = call_loss(POLICY, REFERENCE, step=step, rejected_weight=0.5, final_weight=1.0)
        assert metrics["rejected_weight"][0].item() == expected
