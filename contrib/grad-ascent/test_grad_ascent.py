import pytest


def test_by_hand(loss_of):
    """Tokens of log-prob -1, -2 and -6: their mean is -3, and each token's weight a third, upwards."""
    found = loss_of({"forget_tok": [[-1.0, -2.0], [-6.0]]})
    assert found.loss == pytest.approx(-3)
    assert found.gradients["forget_tok"] == [pytest.approx([1 / 3, 1 / 3]), pytest.approx([1 / 3, 0])]
