import pytest
import torch
from posttrain.contract.views import View, Views
from posttrain_testkit.by_hand import RANKED, RANKED_REFERENCE, SCORES, check_gradient, logsig, softmax


def test_gradient_equals_finite_differences(call_loss):
    """Lists of unequal length: the empty place has none."""
    check_gradient(call_loss, RANKED, RANKED_REFERENCE, {"scores": SCORES})


def test_by_hand(call_loss):
    expected = []
    for targets, rewards in ((softmax(2, 1, 0.5), (0.1, 0, -0.1)), (softmax(1, 0), (0, 0.05))):
        pairs = zip(targets, rewards, strict=True)
        expected.append(-sum(t * logsig(r) + logsig(-r) / len(rewards) for t, r in pairs))
    assert call_loss(RANKED, RANKED_REFERENCE, {"scores": SCORES}, beta=0.1)[0].tolist() == pytest.approx(expected)


def test_an_average_answer_stays_where_it_is(call_loss):
    """With equal scores t is 1 / K, and each answer's part is least at a log-ratio of 0."""
    logps = RANKED.completion.logps.clone().requires_grad_()
    policy = Views(completion=View(logps, RANKED.completion.mask, counts=RANKED.completion.counts))
    call_loss(policy, RANKED, columns={"scores": torch.ones(2, 3)})[0].sum().backward()
    assert logps.grad.abs().max().item() == pytest.approx(0, abs=1e-12)
