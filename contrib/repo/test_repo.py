import pytest
from posttrain.contract.views import View, Views
from posttrain_testkit.by_hand import POLICY, REFERENCE


def test_by_hand(call_loss):
    """0.5 + 0.1 and 0.5 + 0.6."""
    loss, metrics = call_loss(POLICY, REFERENCE)
    assert loss.tolist() == pytest.approx([0.6, 1.1])
    assert metrics["active"].tolist() == [1, 1]


def test_learnt_pairs_are_left_alone_and_all_others_weigh_the_same(call_loss):
    """At gamma -0.3 the first pair is beyond it; the second has the gradient 1 / 4 by a chosen token."""
    chosen = POLICY.chosen.logps.clone().requires_grad_()
    policy = Views(chosen=View(chosen, POLICY.chosen.mask), rejected=POLICY.rejected)
    call_loss(policy, REFERENCE, gamma=-0.3)[0].sum().backward()
    assert chosen.grad.tolist() == [[0] * 4, [-0.25] * 4]
