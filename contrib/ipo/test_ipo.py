import pytest
import torch
from posttrain.errors import SettingsError
from posttrain_testkit.by_hand import check_gradient, pair, tensor

#: Log-ratios of the answers: chosen 1 over 4 tokens and 0 over 1, rejected -0.5 over 2 and 0.5 over 1.
POLICY = pair(tensor([-1, -2, -3, -4], [-1, 0, 0, 0]), tensor([-5, -7], [-3, 0]))
REFERENCE = pair(tensor([-2, -2, -3, -4], [-1, 0, 0, 0]), tensor([-5, -6.5], [-3.5, 0]))


def test_squared_distance_per_token(call_loss):
    """Target 1 / 0.2 = 5. Per token 1/4 + 0.5/2 = 0.5 and 0 - 0.5 = -0.5: 4.5 squared and 5.5 squared."""
    loss, _ = call_loss(POLICY, REFERENCE)
    assert loss.tolist() == pytest.approx([20.25, 30.25])


def test_squared_distance_of_whole_answers(call_loss):
    """P2: equation 17 to the letter. 1 + 0.5 = 1.5 and -0.5: 3.5 squared and 5.5 squared."""
    loss, _ = call_loss(POLICY, REFERENCE, length_normalize=False)
    assert loss.tolist() == pytest.approx([12.25, 30.25])


def test_a_margin_beyond_the_target_costs(call_loss):
    """beta 2: the target is 0.25. 0.5 lies 0.25 beyond it, as far as a margin of 0 lies before it."""
    beyond, _ = call_loss(POLICY, REFERENCE, beta=2.0)
    before, _ = call_loss(POLICY, POLICY, beta=2.0)
    assert beyond[0].item() == pytest.approx(0.0625) == before[0].item()


@pytest.mark.parametrize("normalized", [True, False])
def test_equal_models_cost_the_square_of_the_target(call_loss, normalized):
    """R1 and R3: at the first step policy and reference are the same, (1 / 0.2) squared is 25."""
    loss, metrics = call_loss(POLICY, POLICY, length_normalize=normalized)
    assert loss.tolist() == pytest.approx([25, 25])
    assert metrics["margin"].tolist() == [0, 0]


def test_metrics_by_hand(call_loss):
    """0.1 times the log-ratios per token; at the target the margin is 0.5 whatever beta is."""
    _, metrics = call_loss(POLICY, REFERENCE)
    assert metrics["reward_chosen"].tolist() == pytest.approx([0.025, 0])
    assert metrics["reward_rejected"].tolist() == pytest.approx([-0.025, 0.05])
    assert metrics["margin"].tolist() == pytest.approx([0.05, -0.05])
    assert metrics["accuracy"].tolist() == [1, 0]
    assert metrics["logp_chosen"].tolist() == pytest.approx([-10, -1])
    assert metrics["logp_rejected"].tolist() == pytest.approx([-12, -3])


@pytest.mark.parametrize("options", [{}, {"length_normalize": False}, {"beta": 2.0}])
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


@pytest.mark.parametrize("beta", [0, -0.1])
def test_impossible_beta_is_refused(method, beta):
    with pytest.raises(SettingsError, match=rf"beta is {beta:.1f}, expected a number above 0"):
        method.config({"beta": float(beta)})
