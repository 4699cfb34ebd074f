import pytest


def test_by_hand(loss_of):
    """Excess 2, 0 and 1 over three tokens of two rows; two thirds are kept: the first and the last, nll 3 and 2."""
    inputs = {"policy_tok": [[-3.0, -5.0], [-2.0]], "ref_tok": [[-1.0, -5.0], [-1.0]]}
    found = loss_of(inputs, kept_share=2 / 3)
    assert found.loss == pytest.approx(2.5)
    assert found.gradients["policy_tok"] == [pytest.approx([-0.5, 0]), pytest.approx([-0.5, 0])]
    assert loss_of(inputs, kept_share=1.0).loss == pytest.approx(10 / 3)
