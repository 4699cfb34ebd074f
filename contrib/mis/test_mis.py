import math

import pytest
from posttrain_testkit.by_hand import MASK, NEW, OLD, WORTH, tensor

#: The sampler thought the second good token half as likely as the trainer does, and the bad one three times.
SAMPLED = OLD - tensor([0.0, math.log(2)], [-math.log(3), 0.0])


def test_loss_by_hand(completion_loss):
    """Weights 1, 2 and 1/3: the last lies below 0.5."""
    loss, metrics = completion_loss(NEW, WORTH, MASK, OLD, sampled_logps=SAMPLED)
    assert loss.tolist() == pytest.approx([-2, -4.8, 0])
    assert metrics["left_out"].values[MASK].tolist() == [0, 0, 1]


def test_levels(completion_loss):
    """Product 2, and geometric mean sqrt 2 with the tokens' own weights 1 and 2."""
    loss, _ = completion_loss(NEW, WORTH, MASK, OLD, {"level": "sequence"}, sampled_logps=SAMPLED)
    assert loss.tolist() == pytest.approx([-4, -4.8, 0])
    loss, _ = completion_loss(NEW, WORTH, MASK, OLD, {"level": "geometric", "highest": 1.5}, sampled_logps=SAMPLED)
    assert loss.tolist() == pytest.approx([-2, -4.8, 0])
    loss, _ = completion_loss(NEW, WORTH, MASK, OLD, {"level": "geometric", "highest": 1.4}, sampled_logps=SAMPLED)
    assert loss.tolist() == [0, 0, 0]


def test_advantages_by_hand(advantages_of):
    """Of {1, 0, 1}: mean 2/3, sample deviation 0.577350. Equal rewards are worth nothing, also a lone one's."""
    found, _ = advantages_of([1, 0, 1, 0.1, 0.1, 5], [0, 0, 0, 1, 1, 2])
    assert found.tolist() == pytest.approx([0.577349, -1.154699, 0.577349, 0, 0, 0], abs=1e-6)
