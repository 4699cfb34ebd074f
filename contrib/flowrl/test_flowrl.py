"""FlowRL against numbers worked by hand and the shared golden values."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from posttrain.methods import load
from posttrain.testing.goldens import evaluate
from posttrain.views import Batch, Step, View, Views

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / ".." / "shared" / "methods" / "goldens-online.json"
METHOD = load(str(HERE))
D = torch.float64


def loss_of(new, columns, statistics=None, mask=None, start=None, **options):
    mask = torch.ones_like(new, dtype=torch.bool) if mask is None else mask
    found = {"entropy": torch.ones_like(new)} | (statistics or {})
    return METHOD.loss(
        batch=Batch(len(new), columns),
        policy=Views(completion=View(new, mask, **found)),
        reference=Views(completion=View(start, mask)),
        config=METHOD.config(options),
        step=Step(0, 1),
    )


NEW = torch.tensor([[-1.0, -2.0], [-0.5, 0.0]], dtype=D)
START = torch.tensor([[-1.5, -2.5], [-1.0, 0.0]], dtype=D)
MASK = torch.tensor([[True, True], [True, False]])


def test_by_hand():
    """Means -1.5 against -2 and -0.5 against -1, beta 2, advantages 0.5 and -0.5, log Z 0.25: -0.25 and 1.75. Ratios
    e^0.1, and 2, which is clipped to 1.2."""
    old = NEW - torch.tensor([[0.1, 0.0], [math.log(2), 0.0]], dtype=D)
    columns = {"advantages": torch.tensor([0.5, -0.5], dtype=D), "old_logps": old}
    log_z = {"log_z": torch.tensor([[0.25, 9.0], [0.25, 9.0]], dtype=D)}
    loss, metrics = loss_of(NEW, columns, log_z, MASK, START, beta=2.0)
    assert loss.tolist() == pytest.approx([math.exp(0.1) * 0.0625, 1.2 * 1.75**2])
    assert metrics["weight"].tolist() == pytest.approx([math.exp(0.1), 1.2])


def test_the_partition_function_starts_at_one_and_learns():
    module = METHOD.extra_modules(config=METHOD.config({}), hidden_size=4)["log_z"]
    assert module(torch.randn(3, 4)).abs().max() == 0
    log_z = torch.zeros(2, 2, dtype=D, requires_grad=True)
    columns = {"advantages": torch.tensor([0.5, -0.5], dtype=D), "old_logps": NEW}
    loss_of(NEW, columns, {"log_z": log_z}, MASK, START, beta=2.0)[0].sum().backward()
    assert log_z.grad[:, 0].tolist() == pytest.approx([-1.0, 3.0])


def test_advantages_are_in_standard_deviations():
    rollouts = SimpleNamespace(group=torch.tensor([0, 0, 1]))
    rewards, config = torch.tensor([1.0, 0.0, math.nan], dtype=D), METHOD.config({"advantage_epsilon": 0.0})
    found = METHOD.advantages(rewards=rewards, rollouts=rollouts, config=config, state={})
    assert found.tolist() == pytest.approx([0.707107, -0.707107, 0], abs=1e-6)


@pytest.mark.skipif(not GOLDENS.exists(), reason="the shared golden values are not here")
def test_goldens():
    (result,) = evaluate(GOLDENS, "flowrl", [str(HERE)])
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "advantages", "grad_logp_new"]
