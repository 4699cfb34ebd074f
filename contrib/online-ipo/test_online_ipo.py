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


def test_by_hand():
    """beta 1/4: target 2. Margins (-1 + 3) - (-4 + 4.5) = 1.5 and 2, which is the target."""
    loss, metrics = loss_of([-1.0, -1.0], [-4.0, -3.0], reference=([-3.0, -2.0], [-4.5, -2.0]), beta=0.25)
    assert metrics["margin"].tolist() == pytest.approx([1.5, 2])
    assert loss.tolist() == pytest.approx([0.25, 0])


def test_what_is_not_decided_teaches_nothing():
    loss, metrics = loss_of([-1.0, -1.0], [-4.0, -3.0], {"decided": [1.0, 0.0]})
    assert loss[1].item() == 0
    assert metrics["accuracy"][1].isnan()


def test_the_better_one_comes_first(select_of):
    found = select_of([1.0, 2.0, 3.0, 0.0, 5.0, 5.0], [0, 0, 1, 1, 2, 2])
    assert found.pairs == [(1, 0), (2, 3), (4, 5)]
    assert found.columns["decided"].tolist() == [1, 1, 0]


def test_who_answers():
    for share in (0.0, 0.25):
        plan = METHOD.plan_rollouts(
            prompts=[{}], group_size=2, config=METHOD.config({"mixture": share}), state={}, random=None
        )
        assert plan == [[SampleRequest(2, mixture=share)]]
