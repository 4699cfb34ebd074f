import pytest
import torch
from posttrain_testkit.by_hand import check_gradient, pair, tensor

#: Sums: chosen -10 over 4 tokens and -3 over 1, rejected -12 over 2 and -1 over 1.
POLICY = pair(tensor([-1, -2, -3, -4], [-3, 0, 0, 0]), tensor([-5, -7], [-1, 0]))


def test_logistic_loss_of_the_mean_log_probabilities(call_loss):
    """P4: means -2.5 and -6, -3 and -1; twice their differences less 1 are 6 and -5: ln(1 + e^-6), ln(1 + e^5)."""
    loss, _ = call_loss(POLICY)
    assert loss.tolist() == pytest.approx([0.00247569, 5.00671535], abs=1e-8)


def test_length_alone_is_no_reward(call_loss):
    """An answer of four tokens at -1.5 equals one of a token at -1.5: only gamma is left, ln(1 + e^1) = 1.313262."""
    loss, metrics = call_loss(pair(tensor([-1, -2, -1.5, -1.5]), tensor([-1.5])))
    assert loss.item() == pytest.approx(1.313262, abs=1e-6)
    assert metrics["margin"].item() == 0


def test_no_likelihood_term(call_loss, method):
    """P4: one loss a pair and nothing per token, so both answers' gradients sum to 0 where they are of one length."""
    chosen, rejected = tensor([-1.0, -2.0]).requires_grad_(), tensor([-2.0, -2.0]).requires_grad_()
    loss, _ = call_loss(pair(chosen, rejected))
    loss.sum().backward()
    assert loss.shape == (1,)
    assert (chosen.grad + rejected.grad).tolist() == [[0, 0]]
    assert method.card.needs == ()


def test_metrics_by_hand(call_loss):
    """Twice the means; the margin does not contain gamma."""
    _, metrics = call_loss(POLICY)
    assert metrics["reward_chosen"].tolist() == pytest.approx([-5, -6])
    assert metrics["reward_rejected"].tolist() == pytest.approx([-12, -2])
    assert metrics["margin"].tolist() == pytest.approx([7, -4])
    assert metrics["accuracy"].tolist() == [1, 0]
    assert metrics["logp_chosen"].tolist() == pytest.approx([-10, -3])
    assert metrics["logp_rejected"].tolist() == pytest.approx([-12, -1])


@pytest.mark.parametrize("options", [{}, {"beta": 10.0, "gamma": 5.0}, {"gamma": 0.0}])
def test_gradient_equals_finite_differences(call_loss, options):
    check_gradient(call_loss, POLICY, **options)


def test_padding_and_order_of_the_pairs_do_not_matter(call_loss):
    """M1 and M3: two columns of padding and the pairs swapped give the same losses, swapped."""
    wide = torch.nn.functional.pad
    swapped = [pair(*(wide(side.logps.flip(0), (0, 2)) for side in (one.chosen, one.rejected))) for one in (POLICY,)]
    loss, expected = call_loss(*swapped)[0], call_loss(POLICY)[0]
    assert torch.equal(loss, expected.flip(0))
