import math

import pytest
import torch
from posttrain_testkit.by_hand import RANKED, RANKED_REFERENCE, SCORES, check_gradient, softmax


def test_gradient_equals_finite_differences(call_loss):
    """Lists of unequal length: the empty place has none."""
    check_gradient(call_loss, RANKED, RANKED_REFERENCE, {"scores": SCORES})


def test_by_hand(call_loss):
    expected = []
    for target, rewards in ((softmax(2, 1, 0.5), (0.1, 0, -0.1)), (softmax(1, 0), (0, 0.05))):
        expected.append(sum(q * math.log(q / p) for q, p in zip(softmax(*rewards), target, strict=True)))
    assert call_loss(RANKED, RANKED_REFERENCE, {"scores": SCORES})[0].tolist() == pytest.approx(expected)


def test_matched_scores_cost_nothing(call_loss):
    matched = torch.tensor([[0.1, 0.0, -0.1], [0.0, 0.05, 0.0]])
    assert call_loss(RANKED, RANKED_REFERENCE, columns={"scores": matched})[0].tolist() == pytest.approx(
        [0, 0], abs=1e-8
    )
