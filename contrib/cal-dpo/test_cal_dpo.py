import pytest
import torch
from posttrain.contract.views import View, Views
from posttrain_testkit.by_hand import POLICY, REFERENCE, logsig


def test_by_hand(call_loss):
    """log(1 + e^-1.5) = 0.201413; half of (1 - 5)^2 + (-0.5 + 5)^2 is 18.125, of 5.5^2 + 5.25^2 28.90625."""
    loss, _ = call_loss(POLICY, REFERENCE)
    assert loss["preference"].tolist() == pytest.approx([0.201413, -logsig(-0.75)], abs=1e-6)
    assert loss["calibration"].tolist() == pytest.approx([18.125, 28.90625])


def test_calibrated_log_ratios_are_left_alone(call_loss):
    """At beta 0.5 the targets are 1 and -1: a pair that has them pays nothing for calibration."""
    aligned = Views(chosen=View(torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool)),
                    rejected=View(-torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool)))  # fmt: skip
    still = View(torch.zeros(1, 1), aligned.chosen.mask)
    zero = Views(chosen=still, rejected=still)
    assert call_loss(aligned, zero, beta=0.5)[0]["calibration"].tolist() == [0]
