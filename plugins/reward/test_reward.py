import math

import pytest
import torch
from posttrain.contract.views import View, Views
from posttrain.errors import SettingsError
from posttrain_testkit.by_hand import call_loss, method_beside, tensor

METHOD = method_beside(__file__)
CHOSEN = tensor(1.2, 0.3)
REJECTED = tensor(0.4, 0.5)


def loss_of(chosen, rejected, columns=None, **options):
    logps, mask = torch.zeros(len(chosen), 1), torch.ones(len(chosen), 1, dtype=torch.bool)
    policy = Views(chosen=View(logps, mask, chosen), rejected=View(logps, mask, rejected))
    return call_loss(METHOD, policy, columns=columns or {}, **options)


def test_logistic_loss_of_the_difference():
    """Differences 0.8 and -0.2: ln(1 + e^-0.8) = 0.371101, ln(1 + e^0.2) = 0.798139."""
    loss, _ = loss_of(CHOSEN, REJECTED)
    assert loss.tolist() == pytest.approx([0.371101, 0.798139], abs=1e-6)


def test_margin_column_is_subtracted():
    """P10. 0.8 - 0.5 = 0.3: 0.554355; -0.2 - 0.2 = -0.4: 0.913015. The logged margin is that of the scores."""
    loss, metrics = loss_of(CHOSEN, REJECTED, {"margin": tensor(0.5, 0.2)})
    assert loss.tolist() == pytest.approx([0.554355, 0.913015], abs=1e-6)
    assert metrics["margin"].tolist() == pytest.approx([0.8, -0.2])


def test_centering_is_a_term_of_its_own():
    """0.01 * (1.2 + 0.4)^2 = 0.0256 and 0.01 * (0.3 + 0.5)^2 = 0.0064."""
    terms, _ = loss_of(CHOSEN, REJECTED, centering=0.01)
    assert terms["preference"].tolist() == pytest.approx([0.371101, 0.798139], abs=1e-6)
    assert terms["centering"].tolist() == pytest.approx([0.0256, 0.0064])


def test_label_smoothing_weighs_both_directions():
    """0.9 * 0.371101 + 0.1 * (0.371101 + 0.8) = 0.451101."""
    loss, _ = loss_of(CHOSEN, REJECTED, label_smoothing=0.1)
    assert loss[0].item() == pytest.approx(0.451101, abs=1e-6)


def test_metrics_by_hand():
    _, metrics = loss_of(CHOSEN, REJECTED)
    assert metrics["accuracy"].tolist() == [1, 0]
    assert metrics["score_chosen"].tolist() == [1.2, 0.3]
    assert metrics["score_rejected"].tolist() == [0.4, 0.5]


def test_only_the_difference_matters_without_centering():
    shifted, _ = loss_of(CHOSEN + 7, REJECTED + 7)
    assert shifted.tolist() == pytest.approx(loss_of(CHOSEN, REJECTED)[0].tolist())
    centred = [loss_of(CHOSEN + shift, REJECTED + shift, centering=0.1)[0]["centering"].sum() for shift in (0, 7)]
    assert centred[1] > centred[0]


def test_equal_scores_cost_ln_2():
    loss, _ = loss_of(CHOSEN, CHOSEN)
    assert loss.tolist() == pytest.approx([math.log(2)] * 2)


@pytest.mark.parametrize("options", [{}, {"centering": 0.5}, {"label_smoothing": 0.2}])
def test_gradient_equals_finite_differences(options):
    def total(chosen, rejected):
        loss, _ = loss_of(chosen, rejected, {"margin": torch.tensor([0.5, -0.2])}, **options)
        return sum(loss.values()).sum() if isinstance(loss, dict) else loss.sum()

    assert torch.autograd.gradcheck(total, (CHOSEN.clone().requires_grad_(), REJECTED.clone().requires_grad_()))


def test_impossible_smoothing_is_refused():
    with pytest.raises(SettingsError, match=r"label_smoothing is -0.1, expected a share"):
        METHOD.config({"label_smoothing": -0.1})
