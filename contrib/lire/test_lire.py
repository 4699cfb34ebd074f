"""LIRE against numbers worked by hand and the golden values."""

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


@pytest.mark.parametrize("normalise", [True, False])
def test_by_hand(normalise):
    """Log-probabilities -4, -6, -9 and -2, -8, halved; scores as they are, or the softmax of a list's own."""
    expected = []
    for logps, scores in (((-4, -6, -9), (2, 1, 0.5)), ((-2, -8), (1, 0))):
        weights = softmax(*scores) if normalise else scores
        expected.append(-sum(s * q for s, q in zip(weights, softmax(*(one / 2 for one in logps)), strict=True)))
    assert loss_of(normalise_scores=normalise)[0].tolist() == pytest.approx(expected)
    assert METHOD.config({}).normalise_scores is True


def test_equal_scores_teach_nothing():
    logps = POLICY.completion.logps.clone().requires_grad_()
    policy = Views(completion=View(logps, POLICY.completion.mask, counts=POLICY.completion.counts))
    loss_of(policy, scores=torch.ones(2, 3))[0].sum().backward()
    assert logps.grad.abs().max().item() == pytest.approx(0, abs=1e-12)


def test_goldens():
    found = evaluate(GOLDENS, "lire", [str(HERE)])
    assert {one.entry: one.status for one in found} == dict.fromkeys(("lire",), "equal")
