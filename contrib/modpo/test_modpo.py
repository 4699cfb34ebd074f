import pytest
import torch
from posttrain_testkit.by_hand import POLICY, REFERENCE, logsig

SCORES = {"chosen_score": torch.tensor([0.2, 1.0]), "rejected_score": torch.tensor([0.6, 0.0])}


def test_by_hand(call_loss):
    """(0.15 + 0.5 * 0.4) / 0.5 = 0.7: log(1 + e^-0.7) = 0.403186; (-0.075 - 0.5) / 0.5 = -1.15."""
    assert call_loss(POLICY, REFERENCE, columns=SCORES)[0].tolist() == pytest.approx(
        [0.403186, -logsig(-1.15)], abs=1e-6
    )


def test_all_weight_on_the_preference_is_dpo(call_loss):
    assert call_loss(POLICY, REFERENCE, columns=SCORES, weights=(1.0, 0.0))[0][0].item() == pytest.approx(-logsig(0.15))
