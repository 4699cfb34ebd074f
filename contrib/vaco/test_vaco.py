import math

import pytest
from posttrain_testkit.by_hand import MASK, NEW, OLD, WORTH, tensor

#: The sampler thought the second good token half as likely as the trainer does, and the bad one three times.
SAMPLED = OLD - tensor([0.0, math.log(2)], [-math.log(3), 0.0])


def test_loss_by_hand(completion_loss):
    """Weights 1, 2 and 1/3. The good one varies by (0 + 1) / 2, its second token would rise further; so would the bad
    one's fall further."""
    loss, metrics = completion_loss(NEW, WORTH, MASK, OLD, sampled_logps=SAMPLED)
    assert loss.tolist() == pytest.approx([-2, 0, 0])
    assert metrics["variation"].values[MASK].tolist() == pytest.approx([0.5, 0.5, 2 / 3])


def test_what_pulls_back_is_kept_and_capped(completion_loss):
    loss, _ = completion_loss(OLD, -WORTH, MASK, OLD, {"rho_cap": 1.5}, sampled_logps=SAMPLED)
    assert loss.tolist() == pytest.approx([2, 3, -1 / 3])


def test_within_delta_nothing_is_filtered(completion_loss):
    loss, _ = completion_loss(NEW, WORTH, MASK, OLD, {"delta": 0.7}, sampled_logps=SAMPLED)
    assert loss.tolist() == pytest.approx([-2, -4.8, 0.8 / 3])


def test_advantages_by_hand(advantages_of):
    """Of {1, 0, 1}: mean 2/3, sample deviation 0.577350. Equal rewards are worth nothing, also a lone one's."""
    found, _ = advantages_of([1, 0, 1, 0.1, 0.1, 5], [0, 0, 0, 1, 1, 2])
    assert found.tolist() == pytest.approx([0.577349, -1.154699, 0.577349, 0, 0, 0], abs=1e-6)
