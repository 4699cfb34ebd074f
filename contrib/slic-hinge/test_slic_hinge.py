import pytest
from posttrain.contract.views import View, Views
from posttrain_testkit.by_hand import POLICY, REFERENCE


def test_by_hand(call_loss):
    """1 - 0.1 * 1.5 = 0.85; 1 + 0.1 * 0.75 = 1.075."""
    loss, metrics = call_loss(POLICY, REFERENCE, beta=0.1)
    assert loss.tolist() == pytest.approx([0.85, 1.075])
    assert metrics["learnt"].tolist() == [0, 0]


def test_a_learnt_pair_has_no_gradient(call_loss):
    """At beta 1 the first pair's margin of 1.5 is beyond 1, the second's -0.75 falls short by 1.75."""
    chosen = POLICY.chosen.logps.clone().requires_grad_()
    loss, metrics = call_loss(
        Views(chosen=View(chosen, POLICY.chosen.mask), rejected=POLICY.rejected), REFERENCE, beta=1.0
    )
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([0, 1.75])
    assert metrics["learnt"].tolist() == [1, 0]
    assert chosen.grad.tolist() == [[0] * 4, [-1] * 4]
