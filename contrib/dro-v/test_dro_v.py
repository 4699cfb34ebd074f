"""Direct reward optimisation against numbers worked by hand and the shared golden values."""

from pathlib import Path

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
COLUMNS = {"advantages": torch.tensor([1.0, 0.0], dtype=D)}


def test_by_hand():
    """tau 1/2. 1 - 0.25 - 0.5 * 1 and 0 - 0.5 - 0.5 * 0.5; the value is the first token's."""
    value = {"value": torch.tensor([[0.25, 9.0], [0.5, 9.0]], dtype=D)}
    loss, metrics = loss_of(NEW, COLUMNS, value, MASK, START, tau=0.5)
    assert loss.tolist() == pytest.approx([0.5 * 0.25**2, 0.5 * 0.75**2])
    assert metrics["advantage"].tolist() == [0.75, -0.5]


def test_both_learn():
    """By the value: minus the residual; by each log-prob: minus tau times it."""
    new, value = NEW.clone().requires_grad_(), torch.tensor([[0.25, 0.0], [0.5, 0.0]], dtype=D, requires_grad=True)
    loss_of(new, COLUMNS, {"value": value}, MASK, START, tau=0.5)[0].sum().backward()
    assert value.grad[:, 0].tolist() == pytest.approx([-0.25, 0.75])
    assert new.grad[MASK].tolist() == pytest.approx([-0.125, -0.125, 0.375])


@pytest.mark.skipif(not GOLDENS.exists(), reason="the shared golden values are not here")
def test_goldens():
    (result,) = evaluate(GOLDENS, "dro-v", [str(HERE)])
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "advantages", "grad_logp_new"]
