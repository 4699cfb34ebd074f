import math

import pytest
from posttrain_testkit.by_hand import RANKED, RANKED_REFERENCE, SCORES, check_gradient, softmax


def test_gradient_equals_finite_differences(call_loss):
    """Lists of unequal length: the empty place has none."""
    check_gradient(call_loss, RANKED, RANKED_REFERENCE, {"scores": SCORES})


def test_by_hand(call_loss):
    targets = softmax(2, 1, 0.5), softmax(1, 0)
    shares = softmax(0.1, 0, -0.1), softmax(0, 0.05)
    expected = [-sum(t * math.log(q) for t, q in zip(*pair, strict=True)) for pair in zip(targets, shares, strict=True)]
    assert call_loss(RANKED, RANKED_REFERENCE, {"scores": SCORES}, beta=0.1)[0].tolist() == pytest.approx(expected)


def test_a_certain_target_is_the_softmax_loss(call_loss):
    """Towards alpha 0 only the best counts."""
    assert call_loss(RANKED, RANKED_REFERENCE, {"scores": SCORES}, beta=0.1, alpha=1e-3)[0][0].item() == pytest.approx(
        -math.log(softmax(0.1, 0, -0.1)[0])
    )
