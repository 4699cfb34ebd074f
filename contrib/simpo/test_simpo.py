"""Simple preference optimisation against numbers worked by hand and the golden values."""

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


def test_logistic_loss_of_the_mean_log_probabilities():
    """P4: means -2.5 and -6, -3 and -1; twice their differences less 1 are 6 and -5: ln(1 + e^-6), ln(1 + e^5)."""
    loss, _ = loss_of(POLICY)
    assert loss.tolist() == pytest.approx([0.00247569, 5.00671535], abs=1e-8)


def test_length_alone_is_no_reward():
    """An answer of four tokens at -1.5 equals one of a token at -1.5: only gamma is left, ln(1 + e^1) = 1.313262."""
    loss, metrics = loss_of(views(rows([-1, -2, -1.5, -1.5]), rows([-1.5])))
    assert loss.item() == pytest.approx(1.313262, abs=1e-6)
    assert metrics["margin"].item() == 0


def test_no_likelihood_term():
    """P4: one loss a pair and nothing per token, so both answers' gradients sum to 0 where they are of one length."""
    chosen, rejected = rows([-1.0, -2.0]).requires_grad_(), rows([-2.0, -2.0]).requires_grad_()
    loss, _ = loss_of(views(chosen, rejected))
    loss.sum().backward()
    assert loss.shape == (1,)
    assert (chosen.grad + rejected.grad).tolist() == [[0, 0]]
    assert METHOD.card.needs == ()


def test_metrics_by_hand():
    """Twice the means; the margin does not contain gamma."""
    _, metrics = loss_of(POLICY)
    assert metrics["reward_chosen"].tolist() == pytest.approx([-5, -6])
    assert metrics["reward_rejected"].tolist() == pytest.approx([-12, -2])
    assert metrics["margin"].tolist() == pytest.approx([7, -4])
    assert metrics["accuracy"].tolist() == [1, 0]
    assert metrics["logp_chosen"].tolist() == pytest.approx([-10, -3])
    assert metrics["logp_rejected"].tolist() == pytest.approx([-12, -1])


@pytest.mark.parametrize("options", [{}, {"beta": 10.0, "gamma": 5.0}, {"gamma": 0.0}])
def test_gradient_equals_finite_differences(options):
    chosen, rejected = POLICY.chosen.logps.clone().requires_grad_(), POLICY.rejected.logps.clone().requires_grad_()

    def total(one, other):
        policy = Views(chosen=View(one, POLICY.chosen.mask), rejected=View(other, POLICY.rejected.mask))
        loss, _ = loss_of(policy, **options)
        return loss.sum()

    assert torch.autograd.gradcheck(total, (chosen, rejected))


def test_padding_and_order_of_the_pairs_do_not_matter():
    """M1 and M3: two columns of padding and the pairs swapped give the same losses, swapped."""
    wide = torch.nn.functional.pad
    swapped = [views(*(wide(side.logps.flip(0), (0, 2)) for side in (one.chosen, one.rejected))) for one in (POLICY,)]
    loss, expected = loss_of(*swapped)[0], loss_of(POLICY)[0]
    assert torch.equal(loss, expected.flip(0))


def test_goldens():
    assert {(one.entry, one.status) for one in evaluate(GOLDENS, "simpo", [str(HERE)])} == {("simpo", "equal")}
