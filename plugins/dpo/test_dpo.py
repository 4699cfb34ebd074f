import math

import pytest
from posttrain.contract.views import PerToken
from posttrain.errors import SettingsError
from posttrain_testkit.by_hand import check_gradient, pair, tensor

#: Sums: chosen -10 and -1, rejected -12 and -3. Against the reference the margin is 1.5 and -0.5.
POLICY = pair(tensor([-1, -2, -3, -4], [-1, 0, 0, 0]), tensor([-5, -7], [-3, 0]))
REFERENCE = pair(tensor([-2, -2, -3, -4], [-1, 0, 0, 0]), tensor([-5, -6.5], [-3.5, 0]))


def test_logistic_loss_of_the_margin(call_loss):
    """0.1 * 1.5 = 0.15: ln(1 + e^-0.15) = 0.620957; 0.1 * -0.5 = -0.05: ln(1 + e^0.05) = 0.718460."""
    loss, _ = call_loss(POLICY, REFERENCE)
    assert loss.tolist() == pytest.approx([0.620957, 0.718460], abs=1e-6)


def test_metrics_by_hand(call_loss):
    _, metrics = call_loss(POLICY, REFERENCE)
    assert metrics["reward_chosen"].tolist() == pytest.approx([0.1, 0.0])
    assert metrics["reward_rejected"].tolist() == pytest.approx([-0.05, 0.05])
    assert metrics["margin"].tolist() == pytest.approx([0.15, -0.05])
    assert metrics["accuracy"].tolist() == [1, 0]
    assert metrics["logp_chosen"].tolist() == [-10, -1]
    assert metrics["logp_rejected"].tolist() == [-12, -3]


def test_label_smoothing_weighs_both_directions(call_loss):
    """0.9 * 0.620957 + 0.1 * ln(1 + e^0.15) = 0.9 * 0.620957 + 0.1 * 0.770957 = 0.635957."""
    loss, _ = call_loss(POLICY, REFERENCE, label_smoothing=0.1)
    assert loss[0].item() == pytest.approx(0.635957, abs=1e-6)


def test_sft_term_is_per_token(call_loss):
    """S6: 0.5 * (1 + 2 + 3 + 4) and 0.5 * 1 stay unreduced, so the core divides by the 5 tokens of the whole step."""
    terms, _ = call_loss(POLICY, REFERENCE, sft_weight=0.5)
    assert terms["preference"][0].item() == pytest.approx(0.620957, abs=1e-6)
    assert isinstance(terms["nll"], PerToken)
    assert terms["nll"].values.tolist() == [[0.5, 1, 1.5, 2], [0.5, 0, 0, 0]]


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_equal_models_cost_ln_2(call_loss, smoothing):
    """R1 and R3: at the first step policy and reference are the same."""
    loss, metrics = call_loss(POLICY, POLICY, label_smoothing=smoothing)
    assert loss.tolist() == pytest.approx([math.log(2)] * 2)
    assert metrics["margin"].tolist() == [0, 0]


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.2}, {"sft_weight": 0.3}, {"beta": 2.0}])
def test_gradient_equals_finite_differences(call_loss, options):
    check_gradient(call_loss, POLICY, REFERENCE, **options)


def test_extreme_margins_stay_finite(call_loss):
    """A log-sigmoid of -1000 is -1000, not the logarithm of an underflow."""
    far = pair(tensor([-1e4]), tensor([-1e-3]))
    loss, _ = call_loss(far, pair(tensor([-1e-3]), tensor([-1e-3])))
    assert loss.item() == pytest.approx(1000, rel=1e-4)


def test_impossible_smoothing_is_refused(method):
    with pytest.raises(SettingsError, match=r"label_smoothing is 0.6, expected a share from 0 to 0.5"):
        method.config({"label_smoothing": 0.6})
