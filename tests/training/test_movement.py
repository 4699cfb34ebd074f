"""Whether a trained tensor changed is seen in every block of its sum."""

import pytest
import torch
from posttrain.training import movement
from torch import nn


@pytest.mark.parametrize("place", [0, 2, 3, 6])
def test_a_change_of_one_number_in_any_block_changes_the_sum(place, monkeypatch):
    monkeypatch.setattr(movement, "BLOCK", 3)
    policy = nn.Linear(7, 1, bias=False)
    before = movement._sums(policy)
    assert before["weight"] == pytest.approx(float(policy.weight.double().sum()), abs=1e-12)
    with torch.no_grad():
        policy.weight[0, place] += 1e-6
    assert movement._sums(policy)["weight"] != before["weight"]
