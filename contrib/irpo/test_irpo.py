import pytest
from posttrain.contract.views import View, Views
from posttrain_testkit.by_hand import POLICY, REFERENCE, logsig


def test_by_hand(call_loss):
    """log(1 + e^-0.15) = 0.620957 and 10 / 4 = 2.5: 3.120957 together."""
    loss, _ = call_loss(POLICY, REFERENCE)
    assert loss["preference"].tolist() == pytest.approx([0.620957, -logsig(-0.075)], abs=1e-6)
    assert loss["nll"].tolist() == pytest.approx([2.5, 2])


def test_each_solution_counts_the_same_however_long(call_loss):
    """Repeating every token of a chosen solution leaves its likelihood term."""
    row = View(POLICY.chosen.logps.repeat(1, 3), POLICY.chosen.mask.repeat(1, 3))
    loss, _ = call_loss(Views(chosen=row, rejected=POLICY.rejected), Views(chosen=row, rejected=REFERENCE.rejected))
    assert loss["nll"].tolist() == pytest.approx([2.5, 2])
