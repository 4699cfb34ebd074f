import math

import pytest
import torch
from posttrain_testkit.by_hand import MASK, NEW, OLD, WORTH, tensor


def test_the_baseline_is_the_mean_so_far(advantages_of):
    """1, 0, 0 have the mean 1/3; with 1, 1, 1 behind them the mean of all six is 2/3."""
    state = {}
    assert advantages_of([1, 0, 0], [0, 0, 1], state=state)[0].tolist() == pytest.approx([2 / 3, -1 / 3, -1 / 3])
    assert advantages_of([1, 1, 1], [0, 0, 1], state=state)[0].tolist() == pytest.approx([1 / 3] * 3)
    only = advantages_of([1, 1, 1], [0, 0, 1], state=state, options={"baseline": "batch_mean"})[0]
    assert only.tolist() == [0, 0, 0]


def test_an_unscored_completion_leaves_the_others_alone(advantages_of):
    found, _ = advantages_of([1, math.nan, 0], [0, 0, 0])
    assert found.tolist() == [0.5, 0, -0.5]


def test_divergence_is_part_of_the_reward(advantages_of):
    """Log-ratios of 1 on two tokens cost 0.2 with beta 0.1: rewards 0.8 and 1."""
    old, reference = torch.zeros(2, 2, dtype=torch.float64), tensor([-1.0, -1.0], [0.0, 0.0])
    found, _ = advantages_of([1, 1], [0, 1], options={"beta": 0.1}, old_logps=old, reference_logps=reference)
    assert found.tolist() == pytest.approx([-0.1, 0.1])


def test_loss_by_hand(completion_loss):
    """-2 * (-1 - 2 + ln 1.5), and -0.5 - ln 2."""
    loss, _ = completion_loss(NEW, WORTH, MASK, OLD, baseline=WORTH)
    assert loss.tolist() == pytest.approx([6 - 2 * math.log(1.5), -0.5 - math.log(2)])
