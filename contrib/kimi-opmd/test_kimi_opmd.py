"""Online policy mirror descent against numbers worked by hand and the golden values."""

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

MASK = torch.tensor([[True, True], [True, False]])


def loss_of(new, columns, reference=None, **options):
    view = View(new, MASK, entropy=torch.ones_like(new))
    return METHOD.loss(
        batch=Batch(len(new), columns),
        policy=Views(completion=view),
        reference=None if reference is None else Views(completion=View(reference, MASK)),
        config=METHOD.config(options),
        step=Step(0, 1),
    )


NEW = torch.tensor([[-1.0, -2.0], [-0.5, 0.0]], dtype=D)
COLUMNS = {
    "advantages": torch.tensor([0.5, -1.0], dtype=D),
    "old_logps": torch.tensor([[-1.5, -1.0], [-1.0, 0.0]], dtype=D),
}


def test_by_hand():
    """Sums -3 and -0.5, log-ratios -0.5 and 0.5: 1.5 + 0.1 * 0.25 and -0.5 + 0.1 * 0.25."""
    loss, metrics = loss_of(NEW, COLUMNS, tau=0.2)
    assert loss.tolist() == pytest.approx([1.525, -0.475])
    assert metrics["distance"].tolist() == pytest.approx([0.25, 0.25])


def test_first_order_by_hand():
    loss, _ = loss_of(NEW, COLUMNS, tau=1.0, form="trinity")
    assert loss.values[MASK].tolist() == pytest.approx([0.25, 0.5, -0.25])


def test_the_optimum_is_where_the_log_ratio_is_the_advantage_over_tau():
    new = NEW.clone()
    new[0, 0] = -0.5 + 0.5 / 0.2 - 1.0 + 0.5  # sum l = sum o + A / tau = -2.5 + 2.5, with the other token at -2
    new[0] = torch.tensor([2.0, -2.0])
    new.requires_grad_()
    loss_of(new, COLUMNS, tau=0.2)[0][0].backward()
    assert new.grad[0].abs().max().item() == pytest.approx(0, abs=1e-12)


def test_baseline_is_the_mean_of_the_group():
    rollouts = SimpleNamespace(group=torch.tensor([0, 0, 0, 1]))
    rewards = torch.tensor([1.0, 2.0, float("nan"), 7.0], dtype=D)
    found = METHOD.advantages(rewards=rewards, rollouts=rollouts, config=METHOD.config({}), state={})
    assert found.tolist() == [-0.5, 0.5, 0, 0]


def test_goldens():
    result, *others = evaluate(GOLDENS, "kimi-opmd", [str(HERE)])
    assert {one.status for one in others} == {"equal"}
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "advantages", "grad_logp_new"]
