import math

import pytest
import torch
from posttrain import SampleRequest
from posttrain_testkit.by_hand import call_loss, method_beside, pair

METHOD = method_beside(__file__)
D = torch.float64


def loss_of(chosen, rejected, columns=None, reference=((0.0, 0.0), (0.0, 0.0)), **options):
    columns = {name: torch.tensor(values, dtype=D) for name, values in (columns or {}).items()}
    return call_loss(
        METHOD, pair(chosen, rejected), pair(*reference), {"decided": torch.ones(2, dtype=D)} | columns, **options
    )


def test_the_data_come_first(select_of):
    found = select_of([0.0] * 5, [0, 0, 0, 1, 1], facts={"source": ["policy", "policy", "data", "data", "policy"]})
    assert found.pairs == [(2, 0), (2, 1), (3, 4)]
    plan = METHOD.plan_rollouts(prompts=[{}], group_size=2, config=METHOD.config({}), state={}, random=None)
    assert plan == [[SampleRequest(2), SampleRequest(1, source="data")]]


def test_loss_by_hand():
    """Margins 0.5 (2 + 1) and 0: ln(1 + e^-1.5) and ln 2."""
    loss, metrics = loss_of([-1.0, -2.0], [-4.0, -1.0], reference=([-3.0, -2.0], [-3.0, -1.0]), scale=0.5)
    assert loss.tolist() == pytest.approx([math.log(1 + math.exp(-1.5)), math.log(2)])
    assert metrics["logp_data"].tolist() == [-1, -2]
