import math

import pytest


def test_by_hand(loss_of):
    """Probabilities 1/2 and 1/4: (ln 2 / 2 + ln 4 / 4) / 2; the gradient by a token's log-prob is -p / 2."""
    found = loss_of({"policy_tok": [[math.log(0.5), math.log(0.25)]]})
    assert found.loss == pytest.approx((math.log(2) / 2 + math.log(4) / 4) / 2)
    assert found.gradients["policy_tok"][0] == pytest.approx([-0.25, -0.125])
