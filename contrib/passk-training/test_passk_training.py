import itertools

import pytest
import torch
from posttrain_testkit.by_hand import MASK, NEW, OLD, WORTH


def test_advantages_equal_an_average_over_all_sets(advantages_of):
    """Brute force: every set of k of five answers, its reward standardised, averaged for each answer."""
    rewards, k = [1.0, 0.0, 0.0, 1.0, 0.0], 3
    sets = list(itertools.combinations(range(5), k))
    worth = torch.tensor([max(rewards[i] for i in one) for one in sets], dtype=torch.float64)
    standard = (worth - worth.mean()) / worth.std(correction=0)
    expected = [float(standard[[i in one for one in sets]].mean()) for i in range(5)]
    found, columns = advantages_of(rewards, [0] * 5, options={"k": k})
    assert found.tolist() == pytest.approx(expected)
    assert columns["pass_at_k"].tolist() == pytest.approx([0.9] * 5)


def test_what_is_certain_teaches_nothing(advantages_of):
    """All right, all wrong, and one wrong of three: any two of these hold a right one."""
    found, _ = advantages_of([1, 1, 0, 0, 1, 1, 0], [0, 0, 1, 1, 2, 2, 2], options={"k": 2})
    assert found.tolist() == [0] * 7


def test_loss_is_clipped_and_averaged_over_tokens(completion_loss):
    """Ratios 1, 3/2 and 1/2 under advantages 2 and -1: -2, -2 * 1.28 and 0.8."""
    assert completion_loss(NEW, WORTH, MASK, OLD, pass_at_k=WORTH)[0].tolist() == pytest.approx([-2, -2.56, 0.8])
