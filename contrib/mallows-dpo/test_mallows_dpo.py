import pytest
import torch
from posttrain.contract.views import View, Views
from posttrain_testkit.by_hand import POLICY, REFERENCE, tensor


def uncertain(chosen, rejected):
    """POLICY with these shares of entropy on every token."""
    sides = ((POLICY.chosen, chosen), (POLICY.rejected, rejected))
    rows = [View(one.logps, one.mask, reference_entropy=torch.full_like(one.logps, value)) for one, value in sides]
    return Views(chosen=rows[0], rejected=rows[1])


def test_by_hand(call_loss):
    """-log 0.4 = 0.916291, times 0.15 is 0.137444: log(1 + e^-0.137444) = 0.626785."""
    loss, metrics = call_loss(uncertain(0.5, 0.3), REFERENCE, c=1.0)
    assert metrics["dispersion"].tolist() == pytest.approx([0.916291] * 2, abs=1e-6)
    assert loss[0].item() == pytest.approx(0.626785, abs=1e-6)
    square = call_loss(uncertain(0.5, 0.3), REFERENCE, c=1.0, loss_type="ipo")[0]
    assert square[0].item() == pytest.approx((0.916291 * 1.5 - 5) ** 2, abs=1e-4)


def test_the_scale_is_that_of_the_authors(call_loss, method):
    """0.29 times the index."""
    assert method.config({}).c == 0.29
    _, metrics = call_loss(uncertain(0.5, 0.3), REFERENCE)
    assert metrics["dispersion"].tolist() == pytest.approx([0.29 * 0.916291] * 2, abs=1e-6)


def test_entropy_of_known_distributions(method):
    """Even over four tokens it is all there can be; of (1/2, 1/2, 0, 0) half of it."""
    logits = tensor([0.25] * 4, [0.5, 0.5, 1e-30, 1e-30]).log()
    labels = torch.zeros(2, dtype=torch.long)
    found = method.token_statistics(logits=logits, labels=labels, reference_logits=logits, config=method.config({}))
    assert found["reference_entropy"].tolist() == pytest.approx([1, 0.5])
