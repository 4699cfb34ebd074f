import pytest
import torch
from posttrain.contract.views import PerToken, View, Views
from posttrain_testkit.by_hand import POLICY, REFERENCE, logsig


def triple(gold):
    values = torch.tensor(gold, dtype=torch.float64)  # (B, T)
    return Views(chosen=POLICY.chosen, rejected=POLICY.rejected, gold=View(values, torch.ones_like(values).bool()))


def test_by_hand(call_loss):
    """0.01 * 2 and 0.01 * -1; the gold answers' tokens cost 1 and 2, 0.5 and 1.5, unreduced."""
    loss, metrics = call_loss(triple([[-1, -2], [-0.5, -1.5]]), REFERENCE)
    assert loss["preference"].tolist() == pytest.approx([-logsig(0.02), -logsig(-0.01)])
    assert isinstance(loss["nll"], PerToken)
    assert loss["nll"].values.tolist() == [[1, 2], [0.5, 1.5]]
    assert metrics["logp_gold"].tolist() == [-3, -2]


def test_means_with_a_margin(call_loss):
    """2 * (-2.5 + 2.4) - 0.5 = -0.7: log(1 + e^0.7) = 1.103186."""
    loss, _ = call_loss(triple([[-1.0], [-1.0]]), REFERENCE, length_normalize=True, beta=2.0)
    assert loss["preference"][0].item() == pytest.approx(1.103186, abs=1e-6)
