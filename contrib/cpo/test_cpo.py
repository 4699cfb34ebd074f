"""Contrastive preference optimisation against numbers worked by hand and the golden values."""

from pathlib import Path

import pytest
import torch
from posttrain.methods import load
from posttrain.views import Batch, PerToken, Step, View, Views
from posttrain_testkit.goldens.compare import evaluate

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "offline.json"
METHOD = load(str(HERE))


def views(chosen, rejected):
    """Views of rows of per-token log-probs (B, T); zeros are padding."""
    return Views(chosen=View(chosen, chosen != 0), rejected=View(rejected, rejected != 0))


def loss_of(policy, **options):
    return METHOD.loss(
        batch=Batch(len(policy.chosen.logps), {}),
        policy=policy,
        reference=None,
        config=METHOD.config(options),
        step=Step(0, 1),
    )


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


#: Sums: chosen -10 over 4 tokens and -3 over 1, rejected -12 over 2 and -1 over 1.
POLICY = views(rows([-1, -2, -3, -4], [-3, 0, 0, 0]), rows([-5, -7], [-1, 0]))


def test_logistic_loss_of_the_margin():
    """0.1 * (-10 + 12) = 0.2 and 0.1 * (-3 + 1) = -0.2: ln(1 + e^-0.2) = 0.598139, ln(1 + e^0.2) = 0.798139."""
    loss, _ = loss_of(POLICY)
    assert loss["preference"].tolist() == pytest.approx([0.598139, 0.798139], abs=1e-6)


def test_likelihood_is_per_token():
    """S6: 1 + 2 + 3 + 4 and 3 stay unreduced, so the core divides by the 5 tokens of the whole step."""
    loss, _ = loss_of(POLICY)
    assert isinstance(loss["nll"], PerToken)
    assert loss["nll"].values.tolist() == [[1, 2, 3, 4], [3, 0, 0, 0]]
    assert loss["nll"].mask is POLICY.chosen.mask


def test_weight_of_the_likelihood():
    loss, _ = loss_of(POLICY, sft_weight=0.5)
    assert loss["nll"].values.tolist() == [[0.5, 1, 1.5, 2], [1.5, 0, 0, 0]]
    assert loss["preference"][0].item() == pytest.approx(0.598139, abs=1e-6)


def test_metrics_by_hand():
    """A tenth of the sums."""
    _, metrics = loss_of(POLICY)
    assert metrics["reward_chosen"].tolist() == pytest.approx([-1, -0.3])
    assert metrics["reward_rejected"].tolist() == pytest.approx([-1.2, -0.1])
    assert metrics["margin"].tolist() == pytest.approx([0.2, -0.2])
    assert metrics["accuracy"].tolist() == [1, 0]
    assert metrics["logp_chosen"].tolist() == pytest.approx([-10, -3])
    assert metrics["logp_rejected"].tolist() == pytest.approx([-12, -1])


@pytest.mark.parametrize("options", [{}, {"sft_weight": 0.0}, {"beta": 2.0}])
def test_gradient_equals_finite_differences(options):
    chosen, rejected = POLICY.chosen.logps.clone().requires_grad_(), POLICY.rejected.logps.clone().requires_grad_()

    def total(one, other):
        policy = Views(chosen=View(one, POLICY.chosen.mask), rejected=View(other, POLICY.rejected.mask))
        loss, _ = loss_of(policy, **options)
        return loss["preference"].sum() + loss["nll"].values.sum()

    assert torch.autograd.gradcheck(total, (chosen, rejected))


def test_padding_and_order_of_the_pairs_do_not_matter():
    """M1 and M3: two columns of padding and the pairs swapped give the same losses, swapped."""
    wide = torch.nn.functional.pad
    swapped = [views(*(wide(side.logps.flip(0), (0, 2)) for side in (one.chosen, one.rejected))) for one in (POLICY,)]
    loss, expected = loss_of(*swapped)[0], loss_of(POLICY)[0]
    assert torch.equal(loss["preference"], expected["preference"].flip(0))


def test_goldens():
    assert {(one.entry, one.status) for one in evaluate(GOLDENS, "cpo", [str(HERE)])} == {("cpo", "equal")}
