import math
from types import SimpleNamespace

import pytest
import torch
from posttrain.contract.views import Batch, Step, View, Views
from posttrain_testkit.by_hand import method_beside

METHOD = method_beside(__file__)
D = torch.float64


def select(preferences, group, finished=None, **options):
    """The selection where ``preferences[(i, j)]`` is the probability that answer i beats answer j."""
    rollouts = SimpleNamespace(
        group=torch.tensor(group),
        finished=torch.ones(len(group), dtype=torch.bool) if finished is None else torch.tensor(finished),
        prefer=lambda first, second: torch.tensor(
            [preferences[pair] for pair in zip(first, second, strict=True)], dtype=D
        ),
    )
    return METHOD.select(rollouts=rollouts, rewards=torch.zeros(len(group)), config=METHOD.config(options), state={})


def loss_of(chosen, rejected, reference_chosen, reference_rejected, decided, **options):
    def view(values):
        logps = torch.as_tensor(values, dtype=D)
        return View(logps, torch.ones_like(logps, dtype=torch.bool))

    policy = Views(chosen=view(chosen), rejected=view(rejected))
    reference = Views(chosen=view(reference_chosen), rejected=view(reference_rejected))
    columns = {"decided": torch.tensor(decided, dtype=D), "preference": torch.full((len(decided),), 0.9, dtype=D)}
    config = METHOD.config(options)
    batch = Batch(len(decided), columns)
    return METHOD.loss(batch=batch, policy=policy, reference=reference, config=config, step=Step(0, 1))


def test_the_better_answer_comes_first():
    """Probabilities 0.8 and 0.3 that the first of two is better: the second pair is turned round, worth 0.7."""
    found = select({(0, 1): 0.8, (2, 3): 0.3}, [0, 0, 1, 1])
    assert found.pairs == [(0, 1), (3, 2)]
    assert found.columns["decided"].tolist() == [1, 1]
    assert found.columns["preference"].tolist() == pytest.approx([0.8, 0.7])


def test_groups_need_not_lie_together_and_four_answers_make_two_pairs():
    found = select({(0, 2): 0.1, (1, 3): 0.9, (4, 5): 0.6}, [7, 3, 7, 3, 7, 7])
    assert found.pairs == [(2, 0), (4, 5), (1, 3)]


@pytest.mark.parametrize("verdict", [0.5, math.nan])
def test_an_undecided_pair_teaches_nothing(verdict):
    found = select({(0, 1): verdict}, [0, 0])
    assert found.pairs == [(0, 1)]
    assert found.columns["decided"].tolist() == [0]
    loss, metrics = loss_of([[-1.0]], [[-2.0]], [[-1.5]], [[-1.5]], [0.0])
    assert loss.tolist() == [0]
    assert metrics["accuracy"].isnan().all()


def test_a_cut_off_answer_loses_its_penalty():
    """Log-odds ln(0.6 / 0.4) = 0.405 for the first, which was cut off: less 1 they are -0.595, the second wins."""
    found = select({(0, 1): 0.6}, [0, 0], [False, True], missing_end_penalty=1.0)
    assert found.pairs == [(1, 0)]
    assert found.columns["preference"].tolist() == pytest.approx([1 / (1 + 1.5 * math.exp(-1))])
    assert select({(0, 1): 0.6}, [0, 0], [False, False], missing_end_penalty=1.0).pairs == [(0, 1)]


def test_certain_verdicts_stay_finite():
    found = select({(0, 1): 1.0, (2, 3): 0.0}, [0, 0, 1, 1])
    assert found.pairs == [(0, 1), (3, 2)]
    assert found.columns["preference"].isfinite().all()


def test_loss_by_hand():
    """Rewards 0.5 * (-3 + 4) = 0.5 and 0.5 * (-5 + 4) = -0.5: margin 1, ln(1 + e^-1) = 0.313262."""
    loss, metrics = loss_of([[-1.0, -2.0]], [[-5.0]], [[-2.0, -2.0]], [[-4.0]], [1.0], beta=0.5)
    assert loss.tolist() == pytest.approx([0.313262], abs=1e-6)
    assert metrics["margin"].tolist() == pytest.approx([1.0])
    assert metrics["accuracy"].tolist() == [1]


def test_gradient_by_hand():
    """The derivative of -log sigmoid(m) is -sigmoid(-m): -0.268941 at 1, times beta for each chosen token."""
    chosen = torch.tensor([[-1.0, -2.0]], dtype=D, requires_grad=True)
    loss, _ = loss_of(chosen, [[-5.0]], [[-2.0, -2.0]], [[-4.0]], [1.0], beta=0.5)
    loss.sum().backward()
    assert chosen.grad.tolist()[0] == pytest.approx([-0.134471, -0.134471], abs=1e-6)
