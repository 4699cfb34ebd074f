import math

import pytest
from posttrain_testkit.by_hand import RANKED, RANKED_REFERENCE, SCORES, check_gradient, ranking, softmax


def test_gradient_equals_finite_differences(call_loss):
    """Lists of unequal length: the empty place has none."""
    check_gradient(call_loss, RANKED, RANKED_REFERENCE, {"scores": SCORES})


def test_by_hand(call_loss):
    """-log softmax of the first: of 0.1, 0, -0.1 and of 0, 0.05."""
    expected = [-math.log(softmax(0.1, 0, -0.1)[0]), -math.log(softmax(0, 0.05)[0])]
    assert call_loss(RANKED, RANKED_REFERENCE, {"scores": SCORES}, beta=0.1)[0].tolist() == pytest.approx(expected)


def test_order_of_the_negatives_does_not_matter(call_loss):
    swapped = [ranking((-4, 2), (-9, 3), (-6, 3), (-2, 1), (-8, 4), counts=[3, 2]),
               ranking((-5, 2), (-8, 3), (-6, 3), (-2, 1), (-8.5, 4), counts=[3, 2])]  # fmt: skip
    assert call_loss(*swapped, {"scores": SCORES})[0].tolist() == pytest.approx(
        call_loss(RANKED, RANKED_REFERENCE, {"scores": SCORES})[0].tolist()
    )
