import pytest
from posttrain.contract.views import View, Views
from posttrain_testkit.by_hand import POLICY, REFERENCE, logsig


def test_by_hand(call_loss):
    """5 * (1 / 4 + 0.5 / 5) = 1.75: log(1 + e^-1.75) = 0.160224; 5 * (-0.5 / 4 - 0.25 / 5) = -0.875."""
    assert call_loss(POLICY, REFERENCE)[0].tolist() == pytest.approx([0.160224, -logsig(-0.875)], abs=1e-6)


def test_an_answer_twice_as_long_with_the_same_tokens_counts_the_same(call_loss):
    twice = [Views(chosen=View(one.chosen.logps.repeat(1, 2), one.chosen.mask.repeat(1, 2)), rejected=one.rejected)
             for one in (POLICY, REFERENCE)]  # fmt: skip
    assert call_loss(*twice)[0].tolist() == pytest.approx(call_loss(POLICY, REFERENCE)[0].tolist())
