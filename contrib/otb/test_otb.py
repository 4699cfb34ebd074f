import pytest
import torch
from posttrain_testkit.by_hand import MASK, NEW, OLD, WORTH, tensor

D = torch.float64


def test_advantages_by_hand(advantages_of):
    """Weights of the first token 1 - 2 * 0.5 + 0.5 = 0.5 and 1 - 2 * 0.2 + 0.4 = 1: baseline 0.5 / 1.5 = 1/3.

    The second token has 0.5 + (1 - 1.6 + 0.7) = 0.6 in the first completion alone."""
    old = tensor([0.5, 0.8], [0.2, 1.0]).log()
    squares = tensor([0.5, 0.7], [0.4, 0.0])
    found, _ = advantages_of([1, 0], [0, 0], MASK, old_logps=old, old=lambda name: squares)
    assert found.flatten().tolist() == pytest.approx([2 / 3, 0, -1 / 3, 0], abs=1e-9)


def test_equal_rewards_and_certain_tokens(advantages_of):
    mask = torch.ones(3, 2, dtype=torch.bool)
    certain = {"old_logps": torch.zeros(3, 2, dtype=D), "old": lambda name: torch.ones(3, 2, dtype=D)}
    assert advantages_of([0.1, 0.1, 0.1], [0, 0, 0], mask, **certain)[0].abs().max().item() < 1e-12
    found, _ = advantages_of([1, 0, 0.5], [0, 0, 0], mask, **certain)
    assert found[:, 0].tolist() == pytest.approx([0.5, -0.5, 0])


def test_loss_is_clipped_and_averaged_over_tokens(completion_loss):
    """Ratios 1, 3/2 and 1/2 under advantages 2 and -1: -2, -2 * 1.2 and 0.8."""
    assert completion_loss(NEW, WORTH, MASK, OLD)[0].tolist() == pytest.approx([-2, -2.4, 0.8])
