import pytest
import torch
from posttrain_testkit.by_hand import MASK, NEW, OLD, WORTH, tensor


def test_advantages_by_hand(advantages_of):
    """All right: 0.1 H. All wrong: -0.1 (max H - H). Otherwise by GRPO, for all tokens alike."""
    mask = torch.tensor([[True, True]] * 4 + [[True, False]] * 2)
    entropy = tensor([1.0, 2.0], [0.5, 0.0], [1.0, 0.4], [0.2, 0.6], [3.0, 0.0], [3.0, 0.0])
    found, columns = advantages_of([1, 1, 0, 0, 1, 0], [0, 0, 1, 1, 2, 2], mask, old=lambda name: entropy)
    expected = [[0.1, 0.2], [0.05, 0], [0, -0.06], [-0.04, 0], [0.707106, 0], [-0.707106, 0]]
    assert found.flatten().tolist() == pytest.approx([one for row in expected for one in row], abs=1e-6)
    assert columns["zero_variance"].tolist() == [1, 1, 1, 1, 0, 0]


def test_loss_is_clipped_and_averaged_over_tokens(completion_loss):
    """Ratios 1, 3/2 and 1/2 under advantages 2 and -1: -2, -2 * 1.28 and 0.8."""
    assert completion_loss(NEW, WORTH, MASK, OLD, zero_variance=WORTH)[0].tolist() == pytest.approx([-2, -2.56, 0.8])
