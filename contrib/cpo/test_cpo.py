import pytest
import torch
from posttrain.contract.views import PerToken
from posttrain_testkit.by_hand import check_gradient, pair, tensor

#: Sums: chosen -10 over 4 tokens and -3 over 1, rejected -12 over 2 and -1 over 1.
POLICY = pair(tensor([-1, -2, -3, -4], [-3, 0, 0, 0]), tensor([-5, -7], [-1, 0]))


def test_logistic_loss_of_the_margin(call_loss):
    """0.1 * (-10 + 12) = 0.2 and 0.1 * (-3 + 1) = -0.2: ln(1 + e^-0.2) = 0.598139, ln(1 + e^0.2) = 0.798139."""
    loss, _ = call_loss(POLICY)
    assert loss["preference"].tolist() == pytest.approx([0.598139, 0.798139], abs=1e-6)


def test_likelihood_is_per_token(call_loss):
    """S6: 1 + 2 + 3 + 4 and 3 stay unreduced, so the core divides by the 5 tokens of the whole step."""
    loss, _ = call_loss(POLICY)
    assert isinstance(loss["nll"], PerToken)
    assert loss["nll"].values.tolist() == [[1, 2, 3, 4], [3, 0, 0, 0]]
    assert loss["nll"].mask is POLICY.chosen.mask


def test_weight_of_the_likelihood(call_loss):
    loss, _ = call_loss(POLICY, sft_weight=0.5)
    assert loss["nll"].values.tolist() == [[0.5, 1, 1.5, 2], [1.5, 0, 0, 0]]
    assert loss["preference"][0].item() == pytest.approx(0.598139, abs=1e-6)


def test_metrics_by_hand(call_loss):
    """A tenth of the sums."""
    _, metrics = call_loss(POLICY)
    assert metrics["reward_chosen"].tolist() == pytest.approx([-1, -0.3])
    assert metrics["reward_rejected"].tolist() == pytest.approx([-1.2, -0.1])
    assert metrics["margin"].tolist() == pytest.approx([0.2, -0.2])
    assert metrics["accuracy"].tolist() == [1, 0]
    assert metrics["logp_chosen"].tolist() == pytest.approx([-10, -3])
    assert metrics["logp_rejected"].tolist() == pytest.approx([-12, -1])


@pytest.mark.parametrize("options", [{}, {"sft_weight": 0.0}, {"beta": 2.0}])
def test_gradient_equals_finite_differences(call_loss, options):
    check_gradient(call_loss, POLICY, **options)


def test_padding_and_order_of_the_pairs_do_not_matter(call_loss):
    """M1 and M3: two columns of padding and the pairs swapped give the same losses, swapped."""
    wide = torch.nn.functional.pad
    swapped = [pair(*(wide(side.logps.flip(0), (0, 2)) for side in (one.chosen, one.rejected))) for one in (POLICY,)]
    loss, expected = call_loss(*swapped)[0], call_loss(POLICY)[0]
    assert torch.equal(loss["preference"], expected["preference"].flip(0))
