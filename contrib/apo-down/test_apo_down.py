"""Anchored preference optimisation, down, against numbers worked by hand and the golden values."""

from pathlib import Path

import pytest
import torch
from posttrain.methods import load
from posttrain.views import Batch, Step, View, Views
from posttrain_testkit.goldens.compare import evaluate

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "offline.json"
METHOD = load(str(HERE))


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
    return torch.tensor(values, dtype=torch.float64)


#: Log-ratios of the answers: chosen 1 over 4 tokens and 0 over 1, rejected -0.5 over 2 and 0.5 over 1.
POLICY = views(rows([-1, -2, -3, -4], [-1, 0, 0, 0]), rows([-5, -7], [-3, 0]))
REFERENCE = views(rows([-2, -2, -3, -4], [-1, 0, 0, 0]), rows([-5, -6.5], [-3.5, 0]))


def test_loss_of_anchor_and_margin():
    """Chosen rewards 0.1 and 0, margins 0.15 and -0.05. s(0.1) + s(-0.15) = 0.524979 + 0.462570; 0.5 + 0.512497."""
    loss, _ = loss_of(POLICY, REFERENCE)
    assert loss.tolist() == pytest.approx([0.987549, 1.012497], abs=1e-6)


def test_at_the_start_only_the_rejected_answer_moves_the_margin():
    """s' is 1/4 at 0: anchor and margin cancel by the chosen answer, 0.1/4 - 0.1/4, the rejected one has 0.1/4."""
    grown = POLICY.chosen.logps.clone().requires_grad_(), POLICY.rejected.logps.clone().requires_grad_()
    loss_of(views(*grown), POLICY)[0].sum().backward()
    assert grown[0].grad[:, 0].tolist() == pytest.approx([0, 0])
    assert grown[1].grad[:, 0].tolist() == pytest.approx([0.025, 0.025])


def test_with_a_margin_both_answers_fall():
    """Margin 10, chosen reward 0: the anchor's slope 0.1/4 outweighs that of s(-10); both gradients are positive."""
    grown = rows([-10.0]).requires_grad_(), rows([-110.0]).requires_grad_()
    loss_of(views(*grown), views(rows([-10.0]), rows([-10.0])))[0].sum().backward()
    assert grown[0].grad.item() == pytest.approx(0.025, abs=1e-5)
    assert 0 < grown[1].grad.item() < 1e-5


def test_equal_models_cost_1():
    """R1 and R3: at the first step policy and reference are the same, two sigmoids of 0."""
    loss, metrics = loss_of(POLICY, POLICY)
    assert loss.tolist() == [1, 1]
    assert metrics["margin"].tolist() == [0, 0]


def test_metrics_by_hand():
    """0.1 times log-ratios of 1, 0 and -0.5, 0.5."""
    _, metrics = loss_of(POLICY, REFERENCE)
    assert metrics["reward_chosen"].tolist() == pytest.approx([0.1, 0])
    assert metrics["reward_rejected"].tolist() == pytest.approx([-0.05, 0.05])
    assert metrics["margin"].tolist() == pytest.approx([0.15, -0.05])
    assert metrics["accuracy"].tolist() == [1, 0]
    assert metrics["logp_chosen"].tolist() == pytest.approx([-10, -1])
    assert metrics["logp_rejected"].tolist() == pytest.approx([-12, -3])


@pytest.mark.parametrize("options", [{}, {"beta": 2.0}])
def test_gradient_equals_finite_differences(options):
    chosen, rejected = POLICY.chosen.logps.clone().requires_grad_(), POLICY.rejected.logps.clone().requires_grad_()

    def total(one, other):
        policy = Views(chosen=View(one, POLICY.chosen.mask), rejected=View(other, POLICY.rejected.mask))
        loss, _ = loss_of(policy, REFERENCE, **options)
        return loss.sum()

    assert torch.autograd.gradcheck(total, (chosen, rejected))


def test_padding_and_order_of_the_pairs_do_not_matter():
    """M1 and M3: two columns of padding and the pairs swapped give the same losses, swapped."""
    wide = torch.nn.functional.pad
    swapped = [
        views(*(wide(side.logps.flip(0), (0, 2)) for side in (one.chosen, one.rejected))) for one in (POLICY, REFERENCE)
    ]
    loss, expected = loss_of(*swapped)[0], loss_of(POLICY, REFERENCE)[0]
    assert torch.equal(loss, expected.flip(0))


def test_goldens():
    assert {(one.entry, one.status) for one in evaluate(GOLDENS, "apo-down", [str(HERE)])} == {("apo-down", "equal")}
