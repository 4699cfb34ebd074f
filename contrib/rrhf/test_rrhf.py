import pytest
import torch
from posttrain_testkit.by_hand import RANKED, RANKED_REFERENCE, SCORES, check_gradient


def test_gradient_equals_finite_differences(call_loss):
    """Lists of unequal length: the empty place has none."""
    check_gradient(call_loss, RANKED, RANKED_REFERENCE, {"scores": SCORES})


def test_by_hand(call_loss):
    """Means -2, -2, -3 and -2, -2: no pair in the wrong order; the first prompt's scores turned round: 0 + 1 + 1."""
    loss, metrics = call_loss(RANKED, RANKED_REFERENCE, {"scores": SCORES})
    assert loss["rank"].tolist() == [0, 0]
    assert loss["nll"].tolist() == [2, 2]
    scores = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 0.0]])
    turned, _ = call_loss(RANKED, RANKED_REFERENCE, {"scores": scores})
    assert turned["rank"].tolist() == [2, 0]
    assert metrics["rank_accuracy"].tolist() == pytest.approx([2 / 3, 0])


def test_equal_scores_are_no_pair(call_loss):
    assert call_loss(RANKED, RANKED_REFERENCE, columns={"scores": torch.ones(2, 3)})[0]["rank"].tolist() == [0, 0]
