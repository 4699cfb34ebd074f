from types import SimpleNamespace

import pytest
import torch
from posttrain_testkit.by_hand import MASK, tensor

NEW = tensor([-1.0, -2.0], [-0.5, 0.0])
COLUMNS = {
    "advantages": tensor(0.5, -1.0),
    "old_logps": tensor([-1.5, -1.0], [-1.0, 0.0]),
}


def test_by_hand(call_loss):
    """Sums -3 and -0.5, log-ratios -0.5 and 0.5: 1.5 + 0.1 * 0.25 and -0.5 + 0.1 * 0.25."""
    loss, metrics = call_loss(NEW, columns=COLUMNS, tau=0.2, mask=MASK)
    assert loss.tolist() == pytest.approx([1.525, -0.475])
    assert metrics["distance"].tolist() == pytest.approx([0.25, 0.25])


def test_first_order_by_hand(call_loss):
    loss, _ = call_loss(NEW, columns=COLUMNS, tau=1.0, form="trinity", mask=MASK)
    assert loss.values[MASK].tolist() == pytest.approx([0.25, 0.5, -0.25])


def test_the_optimum_is_where_the_log_ratio_is_the_advantage_over_tau(call_loss):
    new = NEW.clone()
    new[0, 0] = -0.5 + 0.5 / 0.2 - 1.0 + 0.5  # sum l = sum o + A / tau = -2.5 + 2.5, with the other token at -2
    new[0] = torch.tensor([2.0, -2.0])
    new.requires_grad_()
    call_loss(new, columns=COLUMNS, tau=0.2, mask=MASK)[0][0].backward()
    assert new.grad[0].abs().max().item() == pytest.approx(0, abs=1e-12)


def test_baseline_is_the_mean_of_the_group(method):
    rollouts = SimpleNamespace(group=torch.tensor([0, 0, 0, 1]))
    rewards = tensor(1.0, 2.0, float("nan"), 7.0)
    found = method.advantages(rewards=rewards, rollouts=rollouts, config=method.config({}), state={})
    assert found.tolist() == [-0.5, 0.5, 0, 0]
