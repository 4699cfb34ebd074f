import pytest


def test_by_hand(loss_of):
    """Differences 3, 0.5 and -1 with the distance 1: 0, 0.5 and 2."""
    inputs = {"reward_chosen": [3.0, 0.5, 0.0], "reward_rejected": [0.0, 0.0, 1.0]}
    found = loss_of(inputs)
    assert found.loss == pytest.approx(2.5 / 3)
    assert found.gradients["reward_chosen"] == pytest.approx([0, -1 / 3, -1 / 3])
    assert found.metrics["done"].tolist() == [1, 0, 0]
