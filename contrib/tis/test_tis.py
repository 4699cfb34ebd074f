import math

import pytest
from posttrain_testkit.by_hand import MASK, NEW, OLD, WORTH, tensor

#: The sampler thought the second good token half as likely as the trainer does, and the bad one three times.
SAMPLED = OLD - tensor([0.0, math.log(2)], [-math.log(3), 0.0])


def test_loss_by_hand(completion_loss):
    """Losses -2, -2.4 and 0.8 times the weights 1, 2 and 1/3; a cap of 1.5 takes 2 down."""
    loss, metrics = completion_loss(NEW, WORTH, MASK, OLD, sampled_logps=SAMPLED)
    assert loss.tolist() == pytest.approx([-2, -4.8, 0.8 / 3])
    loss, metrics = completion_loss(NEW, WORTH, MASK, OLD, {"cap": 1.5}, sampled_logps=SAMPLED)
    assert loss[1].item() == pytest.approx(-3.6)
    assert metrics["truncated"].values[MASK].tolist() == [0, 1, 0]


def test_weight_of_the_whole_completion(completion_loss):
    """The product 1 * 2 for both tokens of the good one."""
    loss, _ = completion_loss(NEW, WORTH, MASK, OLD, {"level": "sequence"}, sampled_logps=SAMPLED)
    assert loss.tolist() == pytest.approx([-4, -4.8, 0.8 / 3])


def test_advantages_by_hand(advantages_of):
    """Of {1, 0, 1}: mean 2/3, sample deviation 0.577350. Equal rewards are worth nothing, also a lone one's."""
    found, _ = advantages_of([1, 0, 1, 0.1, 0.1, 5], [0, 0, 0, 1, 1, 2])
    assert found.tolist() == pytest.approx([0.577349, -1.154699, 0.577349, 0, 0, 0], abs=1e-6)
