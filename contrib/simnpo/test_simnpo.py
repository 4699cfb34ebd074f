import math

import pytest


def test_by_hand(loss_of):
    """Mean -0.5 over four tokens, beta 2, delta 0.25: ln(1 + e^-0.5) = 0.474077; each token's slope sigmoid(-0.5)/2."""
    inputs = {"forget_tok": [[-0.2, -0.8, -0.5, -0.5]], "retain_tok": [[-1.0]]}
    found = loss_of(inputs, beta=2.0, delta=0.25, forget_weight=1.0, retain_weight=0.0)
    assert found.loss == pytest.approx(math.log(1 + math.exp(-0.5)))
    slope = 2 / 4 / (1 + math.exp(0.5))
    assert found.gradients["forget_tok"][0] == pytest.approx([slope] * 4)


def test_repeating_an_answer_changes_nothing(loss_of):
    short = loss_of({"forget_tok": [[-1.0, -3.0]], "retain_tok": [[-1.0]]})
    long = loss_of({"forget_tok": [[-1.0, -3.0, -1.0, -3.0]], "retain_tok": [[-1.0]]})
    assert short.loss == pytest.approx(long.loss)
