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


def test_win_rates_are_means_over_all_other_answers(select_of):
    """Rewards ln 3, 0, 0: chances 3/4, 3/4 and 1/2. The first wins 3/4 on average, the others (1/4 + 1/2) / 2."""
    found = select_of([0.0, math.log(3), 0.0], [0] * 3)
    assert found.pairs == [(1, 2)]
    assert found.columns["chosen_prob"].tolist() == pytest.approx([0.75])
    assert found.columns["rejected_prob"].tolist() == pytest.approx([0.375])


def test_equal_answers_have_even_chances_and_a_lone_one_makes_no_pair(select_of):
    found = select_of([1.0, 1.0, 5.0], [0, 0, 1])
    assert found.pairs == [(0, 1)]
    assert found.columns["chosen_prob"].tolist() == [0.5]


def test_loss_by_hand():
    """eta 4. Targets 4 (0.75 - 0.5) = 1 and -1; log-ratios 2 and 0: (1 + 1) / 2. Second: 1 and -1, on target."""
    columns = {"chosen_prob": [0.75, 0.75], "rejected_prob": [0.25, 0.25]}
    loss, _ = loss_of([-1.0, -1.0], [-3.0, -3.0], columns, ([-3.0, -2.0], [-3.0, -2.0]), eta=4.0)
    assert loss.tolist() == pytest.approx([1, 0])
