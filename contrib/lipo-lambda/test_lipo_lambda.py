import math

import pytest
import torch
from posttrain.contract.views import View, Views
from posttrain_testkit.by_hand import RANKED, RANKED_REFERENCE, SCORES, check_gradient


def test_gradient_equals_finite_differences(call_loss):
    """Lists of unequal length: the empty place has none."""
    check_gradient(call_loss, RANKED, RANKED_REFERENCE, {"scores": SCORES})


def test_by_hand(call_loss):
    """Ranks 1, 2, 3 and 2, 1 by the rewards 0.1, 0, -0.1 and 0, 0.05."""
    scores = torch.tensor([[1.0, 0.5, 0.0], [1.0, 0.0, 0.0]])
    gain = [1, math.sqrt(2) - 1, 0]
    discount = [1 / math.log(1 + rank) for rank in (1, 2, 3)]
    rewards = [0.1, 0, -0.1]
    first = sum(
        (gain[i] - gain[j]) * (discount[i] - discount[j]) * math.log(1 + math.exp(rewards[j] - rewards[i]))
        for i, j in ((0, 1), (0, 2), (1, 2))
    )
    second = 1 * (discount[0] - discount[1]) * math.log(1 + math.exp(0.05))
    loss, _ = call_loss(RANKED, RANKED_REFERENCE, columns={"scores": scores}, beta=0.1)
    assert loss.tolist() == pytest.approx([first, second])


def test_weights_are_constants_and_equal_scores_no_pairs(call_loss):
    """By a token of the second answer: gain 1, discounts of ranks 1 and 2, times beta sigmoid of the difference."""
    logps = RANKED.completion.logps.clone().requires_grad_()
    policy = Views(completion=View(logps, RANKED.completion.mask, counts=RANKED.completion.counts))
    loss, _ = call_loss(
        policy, RANKED_REFERENCE, columns={"scores": torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])}, beta=0.1
    )
    loss.sum().backward()
    weight = 1 / math.log(2) - 1 / math.log(3)
    assert logps.grad[1, :3].tolist() == pytest.approx([0.1 * weight / (1 + math.exp(0.1))] * 3)
    assert loss[1].item() == 0
