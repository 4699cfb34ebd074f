"""Tapered off-policy REINFORCE against numbers worked by hand and the golden values."""

import math
from pathlib import Path

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


NEW = torch.tensor([[-1.0, -2.0], [-1.5, 0.0]], dtype=D)


def test_bad_ones_are_tapered():
    """Ratios e^-1 and e^0.5 of a good and a bad completion: 1 and 1. The other way round: 1 and e^-1."""
    up, down = NEW.clone(), NEW.clone()
    old = torch.tensor([[-1.0, -1.0], [-2.0, 0.0]], dtype=D)
    columns = {"old_logps": old, "advantages": torch.tensor([1.0, -1.0], dtype=D)}
    assert loss_of(up, columns)[0].tolist() == pytest.approx([3, -1.5])
    columns = {"old_logps": old, "advantages": torch.tensor([-1.0, 1.0], dtype=D)}
    loss, metrics = loss_of(down, columns)
    assert loss.tolist() == pytest.approx([-3 * math.exp(-1), 1.5])
    assert metrics["weight"][0].item() == pytest.approx(math.exp(-1))
    assert metrics["weight"][1].isnan()


def test_the_weight_has_no_gradient():
    new = NEW.clone().requires_grad_()
    columns = {"old_logps": NEW + MASK * 0.5, "advantages": torch.tensor([-1.0, -1.0], dtype=D)}
    loss_of(new, columns)[0].sum().backward()
    assert new.grad[MASK].tolist() == pytest.approx([math.exp(-1)] * 2 + [math.exp(-0.5)])


def test_rewards_become_signs():
    rewards, config = torch.tensor([1.0, 0.0, 0.3, math.nan], dtype=D), METHOD.config({})
    assert METHOD.advantages(rewards=rewards, rollouts=None, config=config, state={}).tolist() == [1, -1, 1, 0]


def test_bounds_that_make_no_sense_are_refused():
    from posttrain.errors import SettingsError

    with pytest.raises(SettingsError, match=r"negative_taper is .* expected a lower and an upper bound"):
        METHOD.config({"negative_taper": [1.0, 0.5]})


def test_goldens():
    (result,) = evaluate(GOLDENS, "topr", [str(HERE)])
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "advantages", "grad_logp_new"]
