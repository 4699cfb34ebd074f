import pytest
import torch
from posttrain_testkit.by_hand import POLICY, REFERENCE, logsig


def test_by_hand(call_loss):
    """-0.1 - 0.25 * (-2.75 + 2.3) - 0.75 * 0.3 = -0.2125, times 10 and 0.9: log(1 + e^1.9125) = 2.050269."""
    loss, _ = call_loss(POLICY, REFERENCE, columns={"phi": torch.full((2,), 0.9, dtype=torch.float64)})
    assert loss[0].item() == pytest.approx(2.050269, abs=1e-6)
    assert call_loss(POLICY, REFERENCE, dispersion=False)[0][0].item() == pytest.approx(-logsig(-2.125))


def test_ends_of_the_mixture(call_loss):
    """alpha 1 is DPO per token without a constant, alpha 0 SimPO."""
    assert call_loss(POLICY, REFERENCE, dispersion=False, alpha=1.0)[0][0].item() == pytest.approx(-logsig(10 * 0.35))
    assert call_loss(POLICY, REFERENCE, dispersion=False, alpha=0.0)[0][0].item() == pytest.approx(
        -logsig(10 * (-0.1 - 0.3))
    )
