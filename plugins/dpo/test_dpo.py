"""Direct preference optimisation against numbers worked by hand and the golden values."""

import math
from pathlib import Path

import pytest
import torch
from posttrain.errors import SettingsError
from posttrain.methods import load
from posttrain.views import Batch, PerToken, Step, View, Views
from posttrain_testkit.goldens.compare import evaluate

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "offline.json"
METHOD = load(str(HERE))
D = torch.float64


def views(chosen, rejected):
    """Views of rows of per-token log-probs (B, T); zeros are padding."""
    return Views(chosen=View(chosen, chosen != 0), rejected=View(rejected, rejected != 0))


def loss_of(policy, reference, **options):
    return METHOD.loss(
        batch=Batch(len(policy.chosen.logps), {}),
        policy=policy,
        reference=reference,
        config=METHOD.config(options),
        step=Step(0, 1),
    )


def rows(*values):
    return torch.tensor(values, dtype=D)


#: Sums: chosen -10 and -1, rejected -12 and -3. Against the reference the margin is 1.5 and -0.5.
POLICY = views(rows([-1, -2, -3, -4], [-1, 0, 0, 0]), rows([-5, -7], [-3, 0]))
REFERENCE = views(rows([-2, -2, -3, -4], [-1, 0, 0, 0]), rows([-5, -6.5], [-3.5, 0]))


def test_logistic_loss_of_the_margin():
    """0.1 * 1.5 = 0.15: ln(1 + e^-0.15) = 0.620957; 0.1 * -0.5 = -0.05: ln(1 + e^0.05) = 0.718460."""
    loss, _ = loss_of(POLICY, REFERENCE)
    assert loss.tolist() == pytest.approx([0.620957, 0.718460], abs=1e-6)


def test_metrics_by_hand():
    _, metrics = loss_of(POLICY, REFERENCE)
    assert metrics["reward_chosen"].tolist() == pytest.approx([0.1, 0.0])
    assert metrics["reward_rejected"].tolist() == pytest.approx([-0.05, 0.05])
    assert metrics["margin"].tolist() == pytest.approx([0.15, -0.05])
    assert metrics["accuracy"].tolist() == [1, 0]
    assert metrics["logp_chosen"].tolist() == [-10, -1]
    assert metrics["logp_rejected"].tolist() == [-12, -3]


def test_label_smoothing_weighs_both_directions():
    """0.9 * 0.620957 + 0.1 * ln(1 + e^0.15) = 0.9 * 0.620957 + 0.1 * 0.770957 = 0.635957."""
    loss, _ = loss_of(POLICY, REFERENCE, label_smoothing=0.1)
    assert loss[0].item() == pytest.approx(0.635957, abs=1e-6)


def test_sft_term_is_per_token():
    """S6: 0.5 * (1 + 2 + 3 + 4) and 0.5 * 1 stay unreduced, so the core divides by the 5 tokens of the whole step."""
    terms, _ = loss_of(POLICY, REFERENCE, sft_weight=0.5)
    assert terms["preference"][0].item() == pytest.approx(0.620957, abs=1e-6)
    assert isinstance(terms["nll"], PerToken)
    assert terms["nll"].values.tolist() == [[0.5, 1, 1.5, 2], [0.5, 0, 0, 0]]


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_equal_models_cost_ln_2(smoothing):
    """R1 and R3: at the first step policy and reference are the same."""
    loss, metrics = loss_of(POLICY, POLICY, label_smoothing=smoothing)
    assert loss.tolist() == pytest.approx([math.log(2)] * 2)
    assert metrics["margin"].tolist() == [0, 0]


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.2}, {"sft_weight": 0.3}, {"beta": 2.0}])
def test_gradient_equals_finite_differences(options):
    chosen, rejected = POLICY.chosen.logps.clone().requires_grad_(), POLICY.rejected.logps.clone().requires_grad_()

    def total(one, other):
        policy = Views(chosen=View(one, POLICY.chosen.mask), rejected=View(other, POLICY.rejected.mask))
        loss, _ = loss_of(policy, REFERENCE, **options)
        return loss["preference"].sum() + loss["nll"].values.sum() if isinstance(loss, dict) else loss.sum()

    assert torch.autograd.gradcheck(total, (chosen, rejected))


def test_extreme_margins_stay_finite():
    """A log-sigmoid of -1000 is -1000, not the logarithm of an underflow."""
    far = views(rows([-1e4]), rows([-1e-3]))
    loss, _ = loss_of(far, views(rows([-1e-3]), rows([-1e-3])))
    assert loss.item() == pytest.approx(1000, rel=1e-4)


def test_impossible_smoothing_is_refused():
    with pytest.raises(SettingsError, match=r"label_smoothing is 0.6, expected a share from 0 to 0.5"):
        METHOD.config({"label_smoothing": 0.6})


@pytest.mark.parametrize("entry", ["dpo", "cdpo", "rpo-sft"])
def test_goldens(entry):
    assert {one.status for one in evaluate(GOLDENS, entry, [str(HERE)])} == {"equal"}
