import pytest
import torch
from posttrain_testkit.by_hand import MASK, NEW, OLD, WORTH, tensor


def test_the_most_uncertain_tokens_are_chosen(advantages_of):
    """Of 1, 2, 3, 4, 5 the 0.8-quantile is 4.2; of the same with share 0.5 it is 3."""
    mask = torch.tensor([[True, True, True], [True, True, False]])
    entropy = tensor([1.0, 5.0, 3.0], [2.0, 4.0, 99.0])
    found, columns = advantages_of([1, 0], [0, 0], mask, old=lambda name: entropy)
    assert found.tolist() == pytest.approx([0.707106, -0.707106], abs=1e-5)
    assert columns["chosen"].tolist() == [[0, 1, 0], [0, 0, 0]]
    assert columns["entropy_threshold"].tolist() == pytest.approx([4.2, 4.2])
    _, columns = advantages_of([1, 0], [0, 0], mask, {"share": 0.5}, old=lambda name: entropy)
    assert columns["chosen"].tolist() == [[0, 1, 1], [0, 1, 0]]


def test_the_others_stay_in_the_denominator_without_a_loss(completion_loss):
    loss, _ = completion_loss(NEW, WORTH, MASK, OLD, chosen=tensor([0.0, 1.0], [1.0, 0.0]), entropy_threshold=WORTH)
    assert loss.tolist() == pytest.approx([0, -2.56, 0.8])


def test_advantages_by_hand(advantages_of):
    """Of {1, 0, 1}: mean 2/3, sample deviation 0.577350. Equal rewards are worth nothing, also a lone one's."""
    found, _ = advantages_of([1, 0, 1, 0.1, 0.1, 5], [0, 0, 0, 1, 1, 2], old=lambda name: torch.ones(6, 2))
    assert found.tolist() == pytest.approx([0.577349, -1.154699, 0.577349, 0, 0, 0], abs=1e-6)
