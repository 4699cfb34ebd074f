"""LiPO-lambda against numbers worked by hand and the golden values."""

import math
from pathlib import Path

import pytest
import torch
from posttrain.methods import load
from posttrain.views import Batch, Step, View, Views
from posttrain_testkit.goldens.compare import evaluate

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "offline.json"
METHOD = load(str(HERE))


def views(*answers, counts):
    """Answers of one or two prompts, each as (log-probability of the whole, tokens)."""
    mask = torch.arange(max(length for _, length in answers)) < torch.tensor([[length] for _, length in answers])
    each = torch.tensor([[total / length] for total, length in answers], dtype=torch.float64)
    logps = torch.where(mask, each, torch.zeros((), dtype=torch.float64))
    return Views(completion=View(logps, mask, counts=torch.tensor(counts)))


#: Log-ratios 1, 0, -1 of the first prompt's three answers, 0 and 0.5 of the second one's two.
POLICY = views((-4, 2), (-6, 3), (-9, 3), (-2, 1), (-8, 4), counts=[3, 2])
REFERENCE = views((-5, 2), (-6, 3), (-8, 3), (-2, 1), (-8.5, 4), counts=[3, 2])
SCORES = torch.tensor([[2.0, 1.0, 0.5], [1.0, 0.0, 0.0]])


def loss_of(policy=POLICY, reference=REFERENCE, scores=SCORES, **options):
    return METHOD.loss(
        batch=Batch(2, {"scores": scores}),
        policy=policy,
        reference=reference,
        config=METHOD.config(options),
        step=Step(0, 1),
    )


def softmax(*values):
    return [math.exp(one) / sum(map(math.exp, values)) for one in values]


def test_gradient_equals_finite_differences():
    """Lists of unequal length: the empty place has none."""
    view = POLICY.completion

    def total(logps):
        loss, _ = loss_of(Views(completion=View(logps * view.mask, view.mask, counts=view.counts)))
        return sum(one.sum() for one in loss.values()) if isinstance(loss, dict) else loss.sum()

    start = view.logps + 0.1 * torch.sin(torch.arange(view.logps.numel()).reshape(view.logps.shape))  # off every kink
    assert torch.autograd.gradcheck(total, (start.requires_grad_(),))


def test_by_hand():
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
    loss, _ = loss_of(scores=scores, beta=0.1)
    assert loss.tolist() == pytest.approx([first, second])


def test_weights_are_constants_and_equal_scores_no_pairs():
    """By a token of the second answer: gain 1, discounts of ranks 1 and 2, times beta sigmoid of the difference."""
    logps = POLICY.completion.logps.clone().requires_grad_()
    policy = Views(completion=View(logps, POLICY.completion.mask, counts=POLICY.completion.counts))
    loss, _ = loss_of(policy, scores=torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]]), beta=0.1)
    loss.sum().backward()
    weight = 1 / math.log(2) - 1 / math.log(3)
    assert logps.grad[1, :3].tolist() == pytest.approx([0.1 * weight / (1 + math.exp(0.1))] * 3)
    assert loss[1].item() == 0


def test_goldens():
    found = evaluate(GOLDENS, "lipo-lambda", [str(HERE)])
    assert {one.entry: one.status for one in found} == dict.fromkeys(("lipo-lambda",), "equal")
