"""KDRL against numbers worked by hand and the golden values."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from posttrain.methods import load
from posttrain.views import Batch, Step, View, Views
from posttrain_testkit.goldens.compare import evaluate

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "online.json"
METHOD = load(str(HERE))
D = torch.float64


def loss_of(new, columns, reference=None, step=None, **options):
    mask = torch.ones_like(new, dtype=torch.bool)
    view = View(new, mask, entropy=torch.ones_like(new))
    return METHOD.loss(
        batch=Batch(len(new), columns),
        policy=Views(completion=view),
        reference=None if reference is None else Views(completion=View(reference, mask)),
        config=METHOD.config(options),
        step=Step(0, 1) if step is None else step,
    )


NEW = torch.tensor([[-1.0, -2.0]], dtype=D)
COLUMNS = {
    "advantages": torch.tensor([2.0], dtype=D),
    "old_logps": NEW - torch.tensor([[1.0, 1.5]], dtype=D).log(),
    "teacher_logps": NEW + torch.tensor([[-0.5, 0.25]], dtype=D),
}


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [("k1", [0.5, -0.25]), ("k2", [0.125, 0.03125]), ("reward", [0.5, -0.375])],  # the last: ratios 1 and 1.5
)
def test_the_teachers_pull(estimator, expected):
    terms, metrics = loss_of(NEW, COLUMNS, estimator=estimator, kd_coef=1.0)
    assert terms["distillation"].values[0].tolist() == pytest.approx(expected)
    assert metrics["reverse_kl"].values[0].tolist() == pytest.approx([0.5, -0.25])


def test_the_policy_term_is_clipped():
    """-2 * 1 and -2 * 1.2, times rl_coef."""
    terms, _ = loss_of(NEW, COLUMNS, rl_coef=0.5)
    assert terms["policy"].values[0].tolist() == pytest.approx([-1, -1.2])


@pytest.mark.parametrize(("estimator", "expected"), [("k1", [1, 1]), ("k2", [0.5, -0.25]), ("reward", [0.5, -0.375])])
def test_gradients_of_the_estimates(estimator, expected):
    """k2 and, while the ratio is 1, "reward" have the gradient (l - q) of the divergence; k1 has 1 everywhere."""
    new = NEW.clone().requires_grad_()
    loss_of(new, COLUMNS, estimator=estimator, kd_coef=1.0)[0]["distillation"].values.sum().backward()
    assert new.grad[0].tolist() == pytest.approx(expected)


def test_advantages_are_in_standard_deviations():
    rollouts = SimpleNamespace(group=torch.tensor([0, 0, 1]), teacher_logps=None)
    rewards = torch.tensor([1.0, 0.0, float("nan")], dtype=D)
    config = METHOD.config({"advantage_epsilon": 0.0})
    found = METHOD.advantages(rewards=rewards, rollouts=rollouts, config=config, state={})
    assert found.tolist() == pytest.approx([0.707107, -0.707107, 0], abs=1e-6)


def test_goldens():
    results = evaluate(GOLDENS, "kdrl", [str(HERE)])
    assert {one.status for one in results} == {"equal"}, [one.line() for one in results]
    assert [one.quantity for one in results[0].comparisons] == ["loss", "advantages", "grad_logp_new"]
