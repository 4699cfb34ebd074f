import math

import pytest
from posttrain_testkit.by_hand import RANKED, RANKED_REFERENCE, SCORES, check_gradient, softmax


def test_gradient_equals_finite_differences(call_loss):
    """Lists of unequal length: the empty place has none."""
    check_gradient(call_loss, RANKED, RANKED_REFERENCE, {"scores": SCORES})


def test_by_hand(call_loss):
    """Rewards 0.1, 0, -0.1 and 0, 0.05: the first rank among three, the second among two."""
    first = -math.log(softmax(0.1, 0, -0.1)[0]) - math.log(softmax(0, -0.1)[0])
    loss, metrics = call_loss(RANKED, RANKED_REFERENCE, {"scores": SCORES})
    assert loss.tolist() == pytest.approx([first, -math.log(softmax(0, 0.05)[0])])
    assert metrics["rank_accuracy"].tolist() == [1, 0]
    assert metrics["reward_worst"].tolist() == pytest.approx([-0.1, 0.05])


def test_equal_models_know_nothing(call_loss):
    """Each of the 3! rankings, and each of the 2, is as likely."""
    assert call_loss(RANKED, RANKED, {"scores": SCORES})[0].tolist() == pytest.approx([math.log(6), math.log(2)])
