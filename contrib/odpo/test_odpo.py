import math

import pytest
import torch
from posttrain_testkit.by_hand import POLICY, REFERENCE, logsig

SCORES = {"chosen_score": torch.tensor([0.9, 0.5]), "rejected_score": torch.tensor([0.4, 0.7])}


def test_by_hand(call_loss):
    """0.15 - log 0.5 = 0.843147: log(1 + e^-0.843147) = 0.357922. A gap of the wrong sign counts as 0.0001."""
    loss, metrics = call_loss(POLICY, REFERENCE, columns=SCORES)
    assert loss[0].item() == pytest.approx(0.357922, abs=1e-6)
    assert metrics["offset"].tolist() == pytest.approx([math.log(0.5), math.log(1e-4)])
    assert loss[1].item() == pytest.approx(-logsig(-0.075 - math.log(1e-4)), rel=1e-5)


def test_no_weight_is_dpo(call_loss):
    assert call_loss(POLICY, REFERENCE, columns=SCORES, alpha=0.0)[0].tolist() == pytest.approx(
        [-logsig(0.15), -logsig(-0.075)]
    )
