import pytest
from posttrain.contract.views import Views
from posttrain_testkit.by_hand import POLICY, REFERENCE, logsig


def test_by_hand(call_loss):
    """Margins 0.15 and -0.075: (-0.9 logsig(z) + 0.1 logsig(-z)) / 0.8 = 0.602207 and 0.740939."""
    loss, metrics = call_loss(POLICY, REFERENCE)
    assert metrics["margin"].tolist() == pytest.approx([0.15, -0.075])
    expected = [(-0.9 * logsig(z) + 0.1 * logsig(-z)) / 0.8 for z in (0.15, -0.075)]
    assert loss.tolist() == pytest.approx(expected)
    assert loss[0].item() == pytest.approx(0.602207, abs=1e-6)


def test_mean_over_swapped_labels_is_the_loss_of_clean_ones(call_loss):
    """Of ten equal pairs one is swapped: the mean of the corrected losses is DPO's loss of the right label."""
    swapped, behind = (Views(chosen=one.rejected, rejected=one.chosen) for one in (POLICY, REFERENCE))
    noisy = 0.9 * call_loss(POLICY, REFERENCE)[0] + 0.1 * call_loss(swapped, behind)[0]
    assert noisy.tolist() == pytest.approx([-logsig(0.15), -logsig(-0.075)])


def test_half_of_the_labels_swapped_teaches_nothing_and_is_refused(method):
    with pytest.raises(Exception, match=r"label_smoothing is 0\.5, expected a share from 0 to below 0\.5"):
        method.config({"label_smoothing": 0.5})
