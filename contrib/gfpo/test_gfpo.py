import math

import pytest
import torch
from posttrain_testkit.by_hand import MASK, NEW, OLD, WORTH


def test_the_most_efficient_are_kept(advantages_of):
    """Rewards 1, 1, 0 over 3, 1, 2 tokens: 1/3, 1, 0. Of the kept 1 and 1 nothing is learnt; with keep 3, by GRPO."""
    mask = torch.tensor([[True, True, True], [True, False, False], [True, True, False]])
    found, columns = advantages_of([1, 1, 0], [0, 0, 0], mask, {"keep": 2})
    assert (found.tolist(), columns["kept"].tolist()) == ([0, 0, 0], [1, 1, 0])
    found, _ = advantages_of([1, 1, 0], [0, 0, 0], mask, {"keep": 3})
    assert found.tolist() == pytest.approx([0.577349, 0.577349, -1.154699], abs=1e-6)


def test_the_shortest_are_kept(advantages_of):
    """Two of 1, 2 and 3 tokens: rewards 0 and 1 of the shorter ones are 0.707107 deviations off their mean."""
    mask = torch.tensor([[True, True, True], [True, False, False], [True, True, False]])
    found, columns = advantages_of([5, 0, 1], [0, 0, 0], mask, {"keep": 2, "metric": "length"})
    assert found.tolist() == pytest.approx([0, -0.707106, 0.707106], abs=1e-6)
    assert columns["kept_length"][1:].tolist() == [1, 2]
    assert math.isnan(columns["kept_length"][0])


def test_loss_is_clipped_and_averaged_over_tokens(completion_loss):
    """Ratios 1, 3/2 and 1/2 under advantages 2 and -1: -2, -2 * 1.2 and 0.8."""
    assert completion_loss(NEW, WORTH, MASK, OLD, kept=WORTH, kept_length=WORTH)[0].tolist() == pytest.approx(
        [-2, -2.4, 0.8]
    )
