import math

import pytest
from posttrain_testkit.by_hand import MASK, NEW, OLD, WORTH


def test_loss_by_hand(completion_loss):
    """The bad completion has fallen by ln 2 = 0.69 > 0.5 and is left out; with a delta of 0.7 it counts 0.8."""
    loss, metrics = completion_loss(NEW, WORTH, MASK, OLD, {"beta": 0.0}, sampled_logps=OLD)
    assert loss.tolist() == pytest.approx([-2.2, 0])
    assert metrics["left_out"].values[MASK].tolist() == [0, 0, 1]
    loss, _ = completion_loss(NEW, WORTH, MASK, OLD, {"beta": 0.0, "delta": 0.7}, sampled_logps=OLD)
    assert loss.tolist() == pytest.approx([-2.2, 0.8])


def test_divergence_is_weighted_by_the_ratio(completion_loss):
    """A reference twice as likely: 1 - ln 2 = 0.306853, times the ratios 1 and 3/2 of the good completion, and 1/2."""
    terms, _ = completion_loss(NEW, WORTH * 0, MASK, OLD, {"beta": 1.0}, NEW + math.log(2), sampled_logps=OLD)
    assert terms["loss"].tolist() == [0.0, 0.0]
    assert terms["divergence"].tolist() == pytest.approx([0.306853 * 1.25, 0.306853 * 0.5], abs=1e-6)


def test_advantages_by_hand(advantages_of):
    """Of {1, 0, 1}: mean 2/3, sample deviation 0.577350. Equal rewards are worth nothing, also a lone one's."""
    found, _ = advantages_of([1, 0, 1, 0.1, 0.1, 5], [0, 0, 0, 1, 1, 2])
    assert found.tolist() == pytest.approx([0.577349, -1.154699, 0.577349, 0, 0, 0], abs=1e-6)
