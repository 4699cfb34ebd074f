import math

import pytest
import torch
from posttrain_testkit.by_hand import POLICY, REFERENCE

SCORES = {"chosen_score": torch.tensor([0.9, 0.3]), "rejected_score": torch.tensor([0.4, 0.3])}


def kl(p, q):
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def test_by_hand(call_loss):
    """Targets 0.5 and 0, margins 0.15 and -0.075, as probabilities."""
    coins = [[1 / (1 + math.exp(-x)) for x in pair] for pair in ((0.5, 0.15), (0.0, -0.075))]
    assert call_loss(POLICY, REFERENCE, columns=SCORES)[0].tolist() == pytest.approx([kl(a, b) for a, b in coins])
    assert call_loss(POLICY, REFERENCE, columns=SCORES, variant="fwd_kl")[0].tolist() == pytest.approx(
        [kl(b, a) for a, b in coins]
    )
    assert call_loss(POLICY, REFERENCE, columns=SCORES, variant="sq")[0].tolist() == pytest.approx([0.35**2, 0.075**2])
    assert call_loss(POLICY, REFERENCE, columns=SCORES)[0][0].item() == pytest.approx(0.014741, abs=1e-6)


@pytest.mark.parametrize("variant", ["bwd_kl", "fwd_kl", "sq"])
def test_a_matched_margin_costs_nothing(call_loss, variant):
    met = {"chosen_score": torch.tensor([0.15, -0.075]), "rejected_score": torch.zeros(2)}
    assert call_loss(POLICY, REFERENCE, columns=met, variant=variant)[0].tolist() == pytest.approx([0, 0], abs=1e-9)
