import math

import pytest
import torch
from posttrain_testkit.by_hand import call_loss, method_beside, pair

METHOD = method_beside(__file__)
D = torch.float64


def loss_of(chosen, rejected, columns=None, reference=((0.0, 0.0), (0.0, 0.0)), **options):
    columns = {name: torch.tensor(values, dtype=D) for name, values in (columns or {}).items()}
    return call_loss(
        METHOD, pair(chosen, rejected), pair(*reference), {"decided": torch.ones(2, dtype=D)} | columns, **options
    )


def test_best_and_worst_of_each_prompt(select_of):
    found = select_of([1.0, 5.0, 3.0, 0.0, 2.0, 2.0, 9.0], [0, 0, 0, 1, 2, 2, 1])
    assert found.pairs == [(1, 0), (6, 3), (4, 5)]
    assert found.columns["decided"].tolist() == [1, 1, 0]


def test_a_lone_answer_makes_no_pair(select_of):
    assert select_of([1.0, 0.0, 1.0], [0, 1, 1]).pairs == [(2, 1)]


def test_loss_by_hand():
    """Margins 0.5 (2 + 1) and 0: ln(1 + e^-1.5) and ln 2."""
    loss, metrics = loss_of([-1.0, -2.0], [-4.0, -1.0], reference=([-3.0, -2.0], [-3.0, -1.0]), beta=0.5)
    assert loss.tolist() == pytest.approx([math.log(1 + math.exp(-1.5)), math.log(2)])
    assert metrics["reward_chosen"].tolist() == pytest.approx([1, 0])
    assert loss_of([-1.0, -2.0], [-4.0, -1.0], {"decided": [1.0, 0.0]})[0][1].item() == 0
