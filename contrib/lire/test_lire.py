import pytest
import torch
from posttrain.contract.views import View, Views
from posttrain_testkit.by_hand import RANKED, RANKED_REFERENCE, SCORES, check_gradient, softmax


def test_gradient_equals_finite_differences(call_loss):
    """Lists of unequal length: the empty place has none."""
    check_gradient(call_loss, RANKED, RANKED_REFERENCE, {"scores": SCORES})


@pytest.mark.parametrize("normalise", [True, False])
def test_by_hand(call_loss, method, normalise):
    """Log-probabilities -4, -6, -9 and -2, -8, halved; scores as they are, or the softmax of a list's own."""
    expected = []
    for logps, scores in (((-4, -6, -9), (2, 1, 0.5)), ((-2, -8), (1, 0))):
        weights = softmax(*scores) if normalise else scores
        expected.append(-sum(s * q for s, q in zip(weights, softmax(*(one / 2 for one in logps)), strict=True)))
    loss, _ = call_loss(RANKED, RANKED_REFERENCE, {"scores": SCORES}, normalise_scores=normalise)
    assert loss.tolist() == pytest.approx(expected)
    assert method.config({}).normalise_scores is True


def test_equal_scores_teach_nothing(call_loss):
    logps = RANKED.completion.logps.clone().requires_grad_()
    policy = Views(completion=View(logps, RANKED.completion.mask, counts=RANKED.completion.counts))
    call_loss(policy, RANKED_REFERENCE, columns={"scores": torch.ones(2, 3)})[0].sum().backward()
    assert logps.grad.abs().max().item() == pytest.approx(0, abs=1e-12)
