import pytest
import torch
from posttrain.contract.views import Views
from posttrain_testkit.by_hand import POLICY, REFERENCE

SCORES = {"chosen_score": torch.tensor([0.9, 0.1]), "rejected_score": torch.tensor([0.4, 0.3])}


def test_by_hand(call_loss):
    """(0.15 - 0.5)^2 = 0.1225; (-0.075 + 0.2)^2 = 0.015625."""
    assert call_loss(POLICY, REFERENCE, columns=SCORES)[0].tolist() == pytest.approx([0.1225, 0.015625])


def test_the_names_of_the_answers_do_not_matter(call_loss):
    """Swapping chosen and rejected, scores too, changes nothing."""
    swapped = [Views(chosen=one.rejected, rejected=one.chosen) for one in (POLICY, REFERENCE)]
    columns = {"chosen_score": SCORES["rejected_score"], "rejected_score": SCORES["chosen_score"]}
    assert call_loss(*swapped, columns=columns)[0].tolist() == pytest.approx([0.1225, 0.015625])
