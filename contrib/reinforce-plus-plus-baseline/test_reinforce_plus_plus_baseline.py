import math

import pytest
from posttrain_testkit.by_hand import MASK, NEW, OLD, WORTH


def test_advantages_by_hand(advantages_of):
    """Rewards 1, 0 in one group: 1/2 on two tokens and -1/2 on one. Mean 1/6, sample variance 1/3."""
    found, _ = advantages_of([1, 0], [0, 0], MASK)
    high, low = (1 / 2 - 1 / 6) * 3**0.5, (-1 / 2 - 1 / 6) * 3**0.5
    assert found.flatten().tolist() == pytest.approx([high, high, low, 0], abs=1e-6)
    assert advantages_of([0.1, 0.1, 0.1], [0, 0, 0])[0].tolist() == [[0, 0]] * 3


def test_loss_by_hand(completion_loss):
    """As PPO; a reference twice as likely adds beta (ln 2)^2 / 2 to every token."""
    assert completion_loss(NEW, WORTH, MASK, OLD, {"beta": 0.0})[0].tolist() == pytest.approx([-2, -2.4, 0.8])
    loss, _ = completion_loss(NEW, WORTH, MASK, OLD, {"beta": 0.5}, NEW + math.log(2))
    extra = 0.25 * math.log(2) ** 2
    assert loss.tolist() == pytest.approx([-2 + extra, -2.4 + extra, 0.8 + extra])
