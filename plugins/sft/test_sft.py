import math

import pytest
import torch
from posttrain.contract.views import Batch, PerToken, Step, View, Views
from posttrain.errors import SettingsError
from posttrain_testkit.by_hand import MASK, method_beside

METHOD = method_beside(__file__)
D = torch.float64


def batch(logits, labels, mask, **options):
    """Loss and metrics for logits (B, T, V): the core's part of the forward pass, without a model."""
    config = METHOD.config(options)
    logps = torch.where(mask, logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0], 0.0)
    values = METHOD.token_statistics(logits=logits[mask], labels=labels[mask], reference_logits=None, config=config)
    spread = {name: torch.zeros(mask.shape, dtype=D).masked_scatter(mask, one) for name, one in values.items()}
    view = View(logps, mask, **spread)
    return METHOD.loss(
        batch=Batch(len(mask), {}), policy=Views(completion=view), reference=None, config=config, step=Step(0, 1)
    )


def probabilities(*rows):
    return torch.tensor(rows, dtype=D).log()


#: Rows of 2 and 1 tokens over a vocabulary of 2. The true token is always 0, with 1/2, 1/4 and 1/8.
LOGITS = probabilities([[0.5, 0.5], [0.25, 0.75]], [[0.125, 0.875], [0.5, 0.5]])
LABELS = torch.zeros(2, 2, dtype=torch.long)


def test_each_token_costs_its_negative_log_probability():
    """ln 2, 2 ln 2 and 3 ln 2; the masked fourth does not count."""
    loss, _ = batch(LOGITS, LABELS, MASK)
    assert isinstance(loss, PerToken)
    assert (loss.values[loss.mask] / math.log(2)).tolist() == pytest.approx([1, 2, 3])


def test_a_row_costs_the_mean_of_its_tokens():
    """(1 + 2) / 2 and 3, in units of ln 2."""
    loss, _ = batch(LOGITS, LABELS, MASK, aggregation="sequence")
    assert (loss / math.log(2)).tolist() == pytest.approx([1.5, 3])


def test_label_smoothing_spreads_over_the_vocabulary():
    """0.9 of -ln p, 0.1 of the mean over both tokens: for (1/4, 3/4) 0.9 * 1.386294 + 0.1 * 0.836988 = 1.331364."""
    loss, _ = batch(LOGITS, LABELS, MASK, label_smoothing=0.1)
    assert loss.values[0, 1].item() == pytest.approx(1.331364, abs=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("aggregation", ["token", "sequence"])
def test_gradient_equals_finite_differences(smoothing, aggregation):
    """Through the logits: with smoothing the statistic carries a part of the gradient (S11)."""
    logits = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0), dtype=D, requires_grad=True)

    def total(x):
        loss, _ = batch(x, LABELS, MASK, label_smoothing=smoothing, aggregation=aggregation)
        return loss.values[loss.mask].sum() if isinstance(loss, PerToken) else loss.sum()

    assert torch.autograd.gradcheck(total, (logits,))


def test_the_smoothed_optimum_is_the_smoothed_target():
    """At p = (0.95, 0.05) the gradient for smoothing 0.1 over two tokens vanishes, and nowhere else."""
    for probability, flat in ((0.95, True), (0.9, False)):
        logits = probabilities([[probability, 1 - probability]]).requires_grad_()
        loss, _ = batch(logits, LABELS[:1, :1], MASK[:1, :1], label_smoothing=0.1)
        loss.values.sum().backward()
        assert (logits.grad.abs().max().item() < 1e-12) == flat


def test_metrics():
    """Token 0 is the greedy choice in none but the first (a tie goes to the first); entropy of (1/2, 1/2) is ln 2."""
    _, metrics = batch(LOGITS.clone().requires_grad_(), LABELS, MASK)
    assert metrics["accuracy"].values[MASK].tolist() == [1, 0, 0]
    assert metrics["entropy"].values[0, 0].item() == pytest.approx(math.log(2))
    assert not metrics["entropy"].values.requires_grad


def test_a_row_without_trained_tokens_costs_nothing():
    """S8, T12."""
    mask = torch.tensor([[True, True], [False, False]])
    loss, _ = batch(LOGITS, LABELS, mask, aggregation="sequence")
    assert loss[1].item() == 0
    assert loss.isfinite().all()


def test_impossible_smoothing_is_refused():
    with pytest.raises(SettingsError, match=r"label_smoothing is 1.5, expected a share"):
        METHOD.config({"label_smoothing": 1.5})
