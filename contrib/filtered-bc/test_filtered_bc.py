import pytest


def test_by_hand(loss_of):
    """Scores 1, 3, 2, 5: their median is 2.5, so the rows of -2 and -6 are learnt."""
    inputs = {"policy_tok": [[-1.0], [-2.0], [-3.0], [-6.0]], "score": [1.0, 3.0, 2.0, 5.0]}
    assert loss_of(inputs, q=0.5).loss == pytest.approx(4)
    assert loss_of(inputs, q=0.0).loss == pytest.approx(3)
