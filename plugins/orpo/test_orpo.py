import math

import pytest
import torch
from posttrain.contract.views import PerToken, View, Views
from posttrain_testkit.by_hand import check_gradient, pair, tensor

#: Geometric means of the tokens' probabilities: chosen 1/2 (of 0.4 and 0.625) and 1/5, rejected 1/5 (of 0.1 and 0.4)
#: and 1/2. Their odds are 1 and 1/4.
POLICY = pair(tensor([0.4, 0.625], [0.2, 1.0]).log(), tensor([0.1, 0.4], [0.5, 1.0]).log())


def test_logistic_loss_of_the_odds_ratio(call_loss):
    """Ratios 4 and 1/4: the sigmoids of their logs are 4/5 and 1/5, a tenth of ln 1.25 and of ln 5."""
    loss, _ = call_loss(POLICY)
    assert loss["preference"].tolist() == pytest.approx([0.02231436, 0.16094379], abs=1e-8)


def test_beta_weighs_the_odds_ratio_alone(call_loss):
    plain, doubled = call_loss(POLICY)[0], call_loss(POLICY, beta=0.2)[0]
    assert doubled["preference"].tolist() == pytest.approx([0.04462871, 0.32188758], abs=1e-8)
    assert torch.equal(plain["nll"].values, doubled["nll"].values)


def test_likelihood_is_per_token(call_loss):
    """S6: -ln 0.4, -ln 0.625 and -ln 0.2 stay unreduced, so the core divides by the 3 tokens of the whole step."""
    loss, _ = call_loss(POLICY)
    assert isinstance(loss["nll"], PerToken)
    assert loss["nll"].values.flatten().tolist() == pytest.approx([0.91629073, 0.47000363, 1.60943791, 0], abs=1e-8)
    assert loss["nll"].mask is POLICY.chosen.mask
    assert loss["nll"].mask.tolist() == [[True, True], [True, False]]


def test_metrics_by_hand(call_loss):
    """ln 4 and -ln 4; products of the probabilities: 0.25, 0.2, 0.04, 0.5."""
    _, metrics = call_loss(POLICY)
    assert metrics["log_odds_ratio"].tolist() == pytest.approx([1.38629436, -1.38629436])
    assert metrics["accuracy"].tolist() == [1, 0]
    assert metrics["logp_chosen"].tolist() == pytest.approx([math.log(0.25), math.log(0.2)])
    assert metrics["logp_rejected"].tolist() == pytest.approx([math.log(0.04), math.log(0.5)])


def test_likely_answers_keep_their_odds(call_loss):
    """1 - p of a log-probability of -1e-5 in float32: odds of 1e5 - 1/2 and 1 / (e^2 - 1) = 0.156518, ln 638902."""
    sure = Views(
        chosen=View(torch.tensor([[-1e-5]]), torch.ones(1, 1, dtype=torch.bool)),
        rejected=pair(tensor([-2.0]), tensor([-2.0])).chosen,
    )
    _, metrics = call_loss(sure)
    assert metrics["log_odds_ratio"].item() == pytest.approx(math.log(638_902), abs=1e-4)


def test_certain_answers_stay_finite(call_loss):
    """A probability of 1 has infinite odds, which would make loss and gradient no numbers."""
    certain = torch.zeros(1, 2).requires_grad_()
    mask = torch.ones(1, 2, dtype=torch.bool)
    loss, _ = call_loss(Views(chosen=View(certain, mask), rejected=View(certain, mask)))
    (loss["preference"].sum() + loss["nll"].values.sum()).backward()
    assert loss["preference"].item() == pytest.approx(0.1 * math.log(2))
    assert certain.grad.tolist() == [[-1, -1]]


@pytest.mark.parametrize("options", [{}, {"beta": 2.0}])
def test_gradient_equals_finite_differences(call_loss, options):
    check_gradient(call_loss, POLICY, **options)


def test_padding_and_order_of_the_pairs_do_not_matter(call_loss):
    """M1 and M3: two columns of padding and the pairs swapped give the same losses, swapped."""
    wide = torch.nn.functional.pad
    swapped = [pair(*(wide(side.logps.flip(0), (0, 2)) for side in (one.chosen, one.rejected))) for one in (POLICY,)]
    loss, expected = call_loss(*swapped)[0], call_loss(POLICY)[0]
    assert torch.equal(loss["preference"], expected["preference"].flip(0))
