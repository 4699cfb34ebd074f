import math

import pytest


def test_by_hand(loss_of):
    """Costs ln 3 and 0, the first harmful, the second harmless: ln(4/3) twice and ln 2."""
    inputs = {"reward_chosen": [math.log(3)], "reward_rejected": [0.0]}
    found = loss_of(inputs)
    assert found.loss == pytest.approx(2 * math.log(4 / 3) + math.log(2))
    assert found.gradients["reward_chosen"] == pytest.approx([-0.5])
    assert found.gradients["reward_rejected"] == pytest.approx([0.25 + 0.5])


def test_both_may_be_harmful(loss_of):
    columns = {"is_harmful_chosen": [True], "is_harmful_rejected": [True]}
    found = loss_of({"reward_chosen": [math.log(3)], "reward_rejected": [0.0]} | columns)
    assert found.gradients["reward_rejected"] == pytest.approx([0.25 - 0.5])
