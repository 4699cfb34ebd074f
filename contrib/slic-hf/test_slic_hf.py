import pytest
from posttrain.contract.views import View, Views
from posttrain_testkit.by_hand import POLICY, REFERENCE


def test_by_hand(call_loss):
    """Gaps 2 and -1: relu(1 - 2) = 0 and relu(1 + 1) = 2; a tenth of 10 and of 8."""
    loss, metrics = call_loss(POLICY, REFERENCE)
    assert loss["calibration"].tolist() == pytest.approx([0, 2])
    assert loss["nll"].tolist() == pytest.approx([1, 0.8])
    assert metrics["margin"].tolist() == [2, -1]


def test_a_calibrated_pair_is_only_imitated(call_loss):
    """The gradient by each token of the first chosen answer is -0.1, of its rejected one 0."""
    rows = [one.logps.clone().requires_grad_() for one in (POLICY.chosen, POLICY.rejected)]
    policy = Views(chosen=View(rows[0], POLICY.chosen.mask), rejected=View(rows[1], POLICY.rejected.mask))
    loss, _ = call_loss(policy, REFERENCE)
    (loss["calibration"] + loss["nll"]).sum().backward()
    assert rows[0].grad.tolist() == [[pytest.approx(-0.1)] * 4, [pytest.approx(-1.1)] * 4]
    assert rows[1].grad.tolist() == [[0] * 5, [1] * 5]
