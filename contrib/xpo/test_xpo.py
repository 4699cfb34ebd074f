import math
from types import SimpleNamespace

import pytest
import torch
from posttrain.contract.views import Batch, Step, View, Views
from posttrain_testkit.by_hand import method_beside

METHOD = method_beside(__file__)
D = torch.float64


def select(preferences, group, source):
    def prefer(first, second):
        return torch.tensor([preferences[pair] for pair in zip(first, second, strict=True)], dtype=D)

    rollouts = SimpleNamespace(group=torch.tensor(group), source=source, prefer=prefer)
    return METHOD.select(rollouts=rollouts, rewards=torch.zeros(len(group)), config=METHOD.config({}), state={})


def loss_of(chosen, rejected, decided, reference_won, **options):
    def view(values):
        logps = torch.as_tensor(values, dtype=D)
        return View(logps, torch.ones_like(logps, dtype=torch.bool))

    policy = Views(chosen=view(chosen), rejected=view(rejected))
    reference = Views(chosen=view([[-2.0]] * len(decided)), rejected=view([[-2.0]] * len(decided)))
    columns = {"decided": torch.tensor(decided, dtype=D), "reference_won": torch.tensor(reference_won, dtype=D)}
    config = METHOD.config(options)
    batch = Batch(len(decided), columns)
    return METHOD.loss(batch=batch, policy=policy, reference=reference, config=config, step=Step(0, 1))


def test_two_answers_are_asked_of_each_prompt():
    (asks,) = METHOD.plan_rollouts(prompts=[{}], group_size=8, config=METHOD.config({}), state={}, random=None)
    assert [(ask.samples, ask.source) for ask in asks] == [(1, "policy"), (1, "reference")]


def test_who_won_is_known_whatever_the_order():
    source = ["reference", "policy", "policy", "reference", "policy", "reference"]
    found = select({(1, 0): 0.7, (2, 3): 0.2, (4, 5): math.nan}, [0, 0, 1, 1, 2, 2], source)
    assert found.pairs == [(1, 0), (3, 2), (4, 5)]
    assert found.columns["reference_won"].tolist() == [0, 1, 0]
    assert found.columns["decided"].tolist() == [1, 1, 0]


def test_a_prompt_that_lost_an_answer_has_no_pair():
    assert select({(1, 2): 0.7}, [0, 1, 1], ["policy", "policy", "reference"]).pairs == [(1, 2)]


def test_loss_by_hand():
    """Margin 0.1 * (1 + 3) = 0.4: ln(1 + e^-0.4) = 0.513015. Bonus: 0.01 times -5, the reference's answer, which lost;
    in the second pair times -1, which won; in the third nothing was decided."""
    (loss, metrics) = loss_of([[-1.0]] * 3, [[-5.0]] * 3, [1.0, 1.0, 0.0], [0.0, 1.0, 0.0], alpha=0.01)
    assert loss["preference"].tolist() == pytest.approx([0.513015, 0.513015, 0], abs=1e-6)
    assert loss["exploration"].tolist() == pytest.approx([-0.05, -0.01, -0.05])
    assert metrics["win_rate"].tolist()[:2] == [1, 0]
    assert metrics["win_rate"][2].isnan()


def test_the_bonus_pushes_the_references_answer_down():
    """d/dl of alpha * l is +alpha: descent lowers the log-probability."""
    rejected = torch.tensor([[-5.0]], dtype=D, requires_grad=True)
    loss, _ = loss_of([[-1.0]], rejected, [0.0], [0.0], alpha=0.25)
    (loss["preference"] + loss["exploration"]).sum().backward()
    assert rejected.grad.item() == pytest.approx(0.25)
