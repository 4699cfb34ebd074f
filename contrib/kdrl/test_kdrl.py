from types import SimpleNamespace

import pytest
import torch
from posttrain_testkit.by_hand import tensor

NEW = tensor([-1.0, -2.0])
COLUMNS = {
    "advantages": tensor(2.0),
    "old_logps": NEW - tensor([1.0, 1.5]).log(),
    "teacher_logps": NEW + tensor([-0.5, 0.25]),
}


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [("k1", [0.5, -0.25]), ("k2", [0.125, 0.03125]), ("reward", [0.5, -0.375])],  # the last: ratios 1 and 1.5
)
def test_the_teachers_pull(call_loss, estimator, expected):
    terms, metrics = call_loss(NEW, columns=COLUMNS, estimator=estimator, kd_coef=1.0)
    assert terms["distillation"].values[0].tolist() == pytest.approx(expected)
    assert metrics["reverse_kl"].values[0].tolist() == pytest.approx([0.5, -0.25])


def test_the_policy_term_is_clipped(call_loss):
    """-2 * 1 and -2 * 1.2, times rl_coef."""
    terms, _ = call_loss(NEW, columns=COLUMNS, rl_coef=0.5)
    assert terms["policy"].values[0].tolist() == pytest.approx([-1, -1.2])


@pytest.mark.parametrize(("estimator", "expected"), [("k1", [1, 1]), ("k2", [0.5, -0.25]), ("reward", [0.5, -0.375])])
def test_gradients_of_the_estimates(call_loss, estimator, expected):
    """k2 and, while the ratio is 1, "reward" have the gradient (l - q) of the divergence; k1 has 1 everywhere."""
    new = NEW.clone().requires_grad_()
    call_loss(new, columns=COLUMNS, estimator=estimator, kd_coef=1.0)[0]["distillation"].values.sum().backward()
    assert new.grad[0].tolist() == pytest.approx(expected)


def test_advantages_are_in_standard_deviations(method):
    rollouts = SimpleNamespace(group=torch.tensor([0, 0, 1]), teacher_logps=None)
    rewards = tensor(1.0, 0.0, float("nan"))
    config = method.config({"advantage_epsilon": 0.0})
    found = method.advantages(rewards=rewards, rollouts=rollouts, config=config, state={})
    assert found.tolist() == pytest.approx([0.707107, -0.707107, 0], abs=1e-6)
