import math

import pytest


def test_by_hand(loss_of):
    """Q = 0 of a right step, -zeta of a wrong one: ln((1 + 1 + 1) / 1) and ln((1 + 1) / 1)."""
    found = loss_of({"scores": [[0.0, -4.0]], "step_label": [[1.0, 0.0]]})
    assert found.loss == pytest.approx((math.log(3) + math.log(2)) / 2)


def test_right_steps_alone_rise_from_the_root(loss_of):
    """Q = ln 2 and ln 3: ln(3 / 2) and ln(6 / 3)."""
    found = loss_of({"scores": [[math.log(2), math.log(3)]], "step_label": [[1.0, 1.0]]})
    assert found.loss == pytest.approx((math.log(1.5) + math.log(2)) / 2)
    assert found.metrics["q_bad"].mask.any().item() is False
