import math
from types import SimpleNamespace

import pytest
import torch
from posttrain.contract.views import Batch, Step, View, Views
from posttrain.errors import SettingsError
from posttrain_testkit.by_hand import MASK, method_beside, tensor

METHOD = method_beside(__file__)
D = torch.float64
POLICY = tensor([-1.0, -2.0], [-0.5, 0.0])
REFERENCE = tensor([-1.5, -1.0], [-0.7, 0.0])


def loss_of(worth, policy=POLICY, **options):
    views = Views(completion=View(policy, MASK, entropy=torch.ones_like(policy)))
    reference = Views(completion=View(REFERENCE, MASK))
    batch = Batch(2, {"advantages": torch.tensor(worth, dtype=D)})
    config = METHOD.config({"beta": 0.5, **options})
    return METHOD.loss(batch=batch, policy=views, reference=reference, config=config, step=Step(0, 1))


def test_each_answer_has_an_opponent_that_is_not_learnt_from():
    config = METHOD.config({"mixture": 0.25})
    ((own, opponent),) = METHOD.plan_rollouts(prompts=[{}], group_size=3, config=config, state={}, random=None)
    assert (own.samples, own.mixture, own.opponent_column) == (3, 0, "")
    assert (opponent.samples, opponent.mixture, opponent.opponent_column) == (3, 0.25, "preference")


def test_advantages_by_hand():
    """Half a point below the chance of winning; without a verdict nothing."""
    rollouts = SimpleNamespace(columns={"preference": [0.8, 0.5, 0.1, math.nan]})
    found = METHOD.advantages(rewards=torch.zeros(4, dtype=D), rollouts=rollouts, config=METHOD.config({}), state={})
    assert found.tolist() == pytest.approx([0.3, 0, -0.4, 0])


def test_loss_by_hand():
    """Log-ratios 0.5, -1 and 0.2. First: (0.25 - 0.3) * -1 + (-0.5 - 0.3) * -2 = 1.65. Second: (0.1 + 0.2) * -0.5."""
    loss, metrics = loss_of([0.3, -0.2])
    assert loss.tolist() == pytest.approx([1.65, -0.15])
    assert metrics["preference"].tolist() == pytest.approx([0.8, 0.3])
    assert metrics["kl"].values[MASK].tolist() == pytest.approx([0.5, -1, 0.2])


def test_the_papers_divergence_is_that_of_the_whole_answer():
    """Both tokens of the first are charged 0.5 * (0.5 - 1) = -0.25: (-0.25 - 0.3) * (-1 - 2) = 1.65, by chance."""
    loss, _ = loss_of([0.3, -0.2], divergence_level="sequence")
    assert loss.tolist() == pytest.approx([1.65, -0.15])
    loss, _ = loss_of([0.0, 0.0], POLICY * 2, divergence_level="sequence")
    assert loss[0].item() == pytest.approx(0.5 * (-6 + 2.5) * -6)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_gradient_is_that_of_the_score_function(level):
    """beta * log-ratio - advantage at each token, the log-ratio held constant."""
    policy = POLICY.clone().requires_grad_()
    loss_of([0.3, -0.2], policy, divergence_level=level)[0].sum().backward()
    ratios = [[0.5, -1.0], [0.2]] if level == "token" else [[-0.5, -0.5], [0.2]]
    expected = [[0.5 * r - worth for r in row] for row, worth in zip(ratios, [0.3, -0.2], strict=True)]
    assert policy.grad[MASK].tolist() == pytest.approx([g for row in expected for g in row])


def test_a_share_outside_0_to_1_is_refused():
    with pytest.raises(SettingsError, match=r"mixture is 1\.5, expected a share from 0 to 1"):
        METHOD.config({"mixture": 1.5})
