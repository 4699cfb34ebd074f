import pytest


def test_by_hand(loss_of):
    """Forget tokens -1 and -3 (mean -2), retain tokens -1, -1, -4 (mean 2): 0.5 * -2 + 3 * 2 = 5."""
    inputs = {"forget_tok": [[-1.0, -3.0]], "retain_tok": [[-1.0, -1.0, -4.0]]}
    found = loss_of(inputs, forget_weight=0.5, retain_weight=3.0)
    assert found.loss == pytest.approx(5)
    assert found.terms == {"forget": pytest.approx(-1), "retain": pytest.approx(6)}
    assert found.gradients["forget_tok"][0] == pytest.approx([0.25, 0.25])
    assert found.gradients["retain_tok"][0] == pytest.approx([-1, -1, -1])
