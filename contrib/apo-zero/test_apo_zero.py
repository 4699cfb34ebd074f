import pytest
import torch
from posttrain_testkit.by_hand import check_gradient, pair, tensor

#: Log-ratios of the answers: chosen 1 over 4 tokens and 0 over 1, rejected -0.5 over 2 and 0.5 over 1.
POLICY = pair(tensor([-1, -2, -3, -4], [-1, 0, 0, 0]), tensor([-5, -7], [-3, 0]))
REFERENCE = pair(tensor([-2, -2, -3, -4], [-1, 0, 0, 0]), tensor([-5, -6.5], [-3.5, 0]))


def test_loss_of_both_anchors(call_loss):
    """Rewards 0.1 and -0.05, 0 and 0.05. s(-0.1) + s(-0.05) = 0.475021 + 0.487503; s(0) + s(0.05) = 0.5 + 0.512497."""
    loss, _ = call_loss(POLICY, REFERENCE)
    assert loss.tolist() == pytest.approx([0.962523, 1.012497], abs=1e-6)


def test_answers_are_anchored_each_on_its_own(call_loss):
    """Gradients by the rewards: -s'(reward_chosen) < 0 whatever the rejected answer is, s'(reward_rejected) > 0."""
    grown = POLICY.chosen.logps.clone().requires_grad_(), POLICY.rejected.logps.clone().requires_grad_()
    call_loss(pair(*grown), REFERENCE)[0].sum().backward()
    slope = 0.1 / (2 + 2 * torch.cosh(tensor(0.1, 0.0, -0.05, 0.05)))  # beta s'
    assert grown[0].grad[:, 0].tolist() == pytest.approx((-slope[:2]).tolist())
    assert grown[1].grad[:, 0].tolist() == pytest.approx(slope[2:].tolist())


def test_equal_models_cost_1(call_loss):
    """R1 and R3: at the first step policy and reference are the same, two sigmoids of 0."""
    loss, metrics = call_loss(POLICY, POLICY)
    assert loss.tolist() == [1, 1]
    assert metrics["margin"].tolist() == [0, 0]


def test_metrics_by_hand(call_loss):
    """0.1 times log-ratios of 1, 0 and -0.5, 0.5."""
    _, metrics = call_loss(POLICY, REFERENCE)
    assert metrics["reward_chosen"].tolist() == pytest.approx([0.1, 0])
    assert metrics["reward_rejected"].tolist() == pytest.approx([-0.05, 0.05])
    assert metrics["margin"].tolist() == pytest.approx([0.15, -0.05])
    assert metrics["accuracy"].tolist() == [1, 0]
    assert metrics["logp_chosen"].tolist() == pytest.approx([-10, -1])
    assert metrics["logp_rejected"].tolist() == pytest.approx([-12, -3])


@pytest.mark.parametrize("options", [{}, {"beta": 2.0}])
def test_gradient_equals_finite_differences(call_loss, options):
    check_gradient(call_loss, POLICY, REFERENCE, **options)


def test_padding_and_order_of_the_pairs_do_not_matter(call_loss):
    """M1 and M3: two columns of padding and the pairs swapped give the same losses, swapped."""
    wide = torch.nn.functional.pad
    swapped = [
        pair(*(wide(side.logps.flip(0), (0, 2)) for side in (one.chosen, one.rejected))) for one in (POLICY, REFERENCE)
    ]
    loss, expected = call_loss(*swapped)[0], call_loss(POLICY, REFERENCE)[0]
    assert torch.equal(loss, expected.flip(0))
