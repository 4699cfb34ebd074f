import pytest
from posttrain_testkit.by_hand import MASK, NEW, OLD, WORTH


def test_advantages_by_hand(advantages_of):
    """One of three: 2 and -1 and -1. Two of three: 1/2, 1/2, -1. None: nothing, and a negative mean too."""
    found, columns = advantages_of([1, 0, 0, 1, 1, 0, 0, 0, -1, 0.5], [0, 0, 0, 1, 1, 1, 2, 2, 3, 3])
    assert found.tolist() == pytest.approx([2, -1, -1, 0.5, 0.5, -1, 0, 0, 0, 0], abs=1e-5)
    assert columns["solved"].tolist() == [1, 1, 1, 1, 1, 1, 0, 0, 0, 0]


def test_loss_is_clipped_and_averaged_over_tokens(completion_loss):
    """Ratios 1, 3/2 and 1/2 under advantages 2 and -1: -2, -2 * 1.2 and 0.8."""
    assert completion_loss(NEW, WORTH, MASK, OLD, solved=WORTH)[0].tolist() == pytest.approx([-2, -2.4, 0.8])
