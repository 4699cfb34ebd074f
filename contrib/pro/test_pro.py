import math

import pytest
import torch
from posttrain.contract.views import View, Views
from posttrain_testkit.by_hand import RANKED, RANKED_REFERENCE, SCORES, check_gradient


def test_gradient_equals_finite_differences(call_loss):
    """Lists of unequal length: the empty place has none."""
    check_gradient(call_loss, RANKED, RANKED_REFERENCE, {"scores": SCORES})


def test_by_hand(call_loss):
    """Gaps 1 and 1.5 at the first rank, 0.5 at the second; p is -2, -2, -3 and -2, -2."""
    first = math.log(math.exp(-3) + math.exp(-2) + math.exp(-4.5)) + 3
    second = math.log(math.exp(-1) + math.exp(-1.5)) + 1
    other = math.log(2)
    loss, _ = call_loss(RANKED, RANKED_REFERENCE, {"scores": SCORES})
    assert loss["rank"].tolist() == pytest.approx([first + second, other])
    assert loss["nll"].tolist() == pytest.approx([0.05 * 4 * 4, 0.05 * 2])


def test_equal_scores_teach_no_order(call_loss):
    logps = RANKED.completion.logps.clone().requires_grad_()
    policy = Views(completion=View(logps, RANKED.completion.mask, counts=RANKED.completion.counts))
    call_loss(policy, RANKED_REFERENCE, columns={"scores": torch.ones(2, 3)}, sft_weight=0.0)[0][
        "rank"
    ].sum().backward()
    assert logps.grad.abs().max() == 0
