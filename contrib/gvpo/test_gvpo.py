"""Group variance policy optimisation against numbers worked by hand and the golden values."""

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
OLD = torch.tensor([[-2.0, -2.0], [-0.5, 0.0]], dtype=D)
COLUMNS = {
    "advantages": torch.tensor([0.5, -0.5], dtype=D),
    "old_logps": OLD,
    "group_log_ratio": torch.tensor([0.5, 0.5], dtype=D),
}


def test_by_hand():
    """Log-ratios 1 and 0, mean 0.5: 0.2 * 0.5 - 0.5 and 0.2 * -0.5 + 0.5, squared, over 0.4."""
    loss, metrics = loss_of(NEW, COLUMNS, beta=0.2)
    assert loss.tolist() == pytest.approx([0.4, 0.4])
    assert metrics["log_ratio"].tolist() == [1, 0]


def test_holding_the_mean_constant_changes_no_gradient():
    """Against the loss of the group with the mean inside."""
    held, free = NEW.clone().requires_grad_(), NEW.clone().requires_grad_()
    loss_of(held, COLUMNS, beta=0.2)[0].sum().backward()
    ratio = (free - OLD).sum(1)
    (((ratio - ratio.mean()) * 0.2 - COLUMNS["advantages"]).square() / 0.4).sum().backward()
    assert torch.allclose(held.grad[MASK], free.grad[MASK])


def test_at_the_optimum_nothing_is_left():
    """Log-ratios that differ by (R - mean) / beta."""
    new = OLD.clone()
    new[:, 0] += COLUMNS["advantages"] / 0.2 + 0.3
    assert loss_of(new, COLUMNS | {"group_log_ratio": torch.full((2,), 0.3, dtype=D)}, beta=0.2)[0].max() < 1e-20


def test_the_mean_of_the_group():
    """Log-ratios 1 and 0 in one group, 2 alone; before any update they are all 0."""

    class Models:
        def logps(self, sequences, model="policy"):
            return [torch.tensor([value], dtype=D) for value in (-1.0, -1.0, -1.0)]

    def examples(old):
        return [
            SimpleNamespace(
                sequences={
                    "completion": [SimpleNamespace(per_token={} if old is None else {"old_logps": old[i : i + 1]})]
                },
                columns={"group": group},
            )
            for i, group in enumerate((0.0, 0.0, 1.0))
        ]

    old, config = torch.tensor([-2.0, -1.0, -3.0], dtype=D), METHOD.config({})
    found = METHOD.annotate(examples=examples(old), models=Models(), config=config, state={})
    assert found["group_log_ratio"].tolist() == [0.5, 0.5, 2]
    found = METHOD.annotate(examples=examples(None), models=Models(), config=config, state={})
    assert found["group_log_ratio"].tolist() == [0, 0, 0]


def test_goldens():
    (result,) = evaluate(GOLDENS, "gvpo", [str(HERE)])
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "advantages", "grad_logp_new"]
