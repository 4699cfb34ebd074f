"""Trajectory balance with asynchrony against numbers worked by hand and the golden values."""

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
REFERENCE = torch.tensor([[-2.0, -2.0], [-1.0, 0.0]], dtype=D)


def test_by_hand():
    """Log-ratios 1 and 0.5, rewards 2 and 1 at beta 2: brackets 0.25 + 1 - 1 and 0.25 + 0.5 - 0.5."""
    columns = {"advantages": torch.tensor([2.0, 1.0], dtype=D), "log_z": torch.tensor([0.25, 0.25], dtype=D)}
    loss, metrics = loss_of(NEW, columns, REFERENCE, beta=2.0)
    assert loss.tolist() == pytest.approx([0.0625, 0.0625])
    assert metrics["kl"].tolist() == [1, 0.5]


def test_the_partition_function_is_the_groups_mean():
    """Group 0: means of 2 - 1 and 0 - 0.5; group 1 alone: 5 - 0."""
    logps = {"policy": [-1.0, -0.5, -3.0], "reference": [-2.0, -1.0, -3.0]}

    class Models:
        def logps(self, sequences, model="policy"):
            return [torch.tensor([value], dtype=D) for value in logps[model]]

    examples = [
        SimpleNamespace(sequences={"completion": [None]}, columns={"advantages": reward, "group": group})
        for reward, group in ((2.0, 0.0), (0.0, 0.0), (5.0, 1.0))
    ]
    found = METHOD.annotate(examples=examples, models=Models(), config=METHOD.config({"beta": 1.0}), state={})
    assert found["log_z"].tolist() == pytest.approx([0.25, 0.25, 5])


def test_at_the_optimum_nothing_is_left():
    """p = p_ref exp(R / beta) / Z: log-ratios R / beta - log Z."""
    rewards = torch.tensor([1.0, -2.0], dtype=D)
    new = REFERENCE.clone()
    new[:, 0] += rewards / 0.5 - 0.7
    columns = {"advantages": rewards, "log_z": torch.full((2,), 0.7, dtype=D)}
    assert loss_of(new, columns, REFERENCE, beta=0.5)[0].abs().max().item() == pytest.approx(0, abs=1e-12)


def test_goldens():
    (result,) = evaluate(GOLDENS, "tba", [str(HERE)])
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "advantages", "grad_logp_new"]
