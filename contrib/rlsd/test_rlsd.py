"""RLSD against numbers worked by hand and the golden values."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from posttrain.errors import SettingsError
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


OLD = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -2.0, -3.0]], dtype=D)
#: The teacher finds the tokens 1.1 times as likely, half as likely, and twice as likely.
TEACHER = OLD + torch.tensor([1.1, 0.5, 2.0], dtype=D).log()


def reweighted(step=None, **options):
    columns = {"advantages": torch.tensor([2.0, -1.0], dtype=D), "old_logps": OLD, "teacher_logps": TEACHER}
    _, metrics = loss_of(OLD, columns, step=step, **options)
    return metrics["reweight"].values, metrics["advantage"].values


def test_shares_follow_the_teacher_and_never_turn_the_sign():
    """Good: 1.1, 0.8, 1.2, half of the way: 1.05, 0.9, 1.1. Bad: 1/1.1, 1.2, 0.8 likewise."""
    reweight, advantages = reweighted()
    assert reweight[0].tolist() == pytest.approx([1.05, 0.9, 1.1])
    assert reweight[1].tolist() == pytest.approx([0.5 + 0.5 / 1.1, 1.1, 0.9])
    assert advantages[0].tolist() == pytest.approx([2.1, 1.8, 2.2])
    assert (advantages[1] < 0).all()


def test_the_mixture_falls_to_nothing():
    """Half-way a quarter is left of 0.5; in the end the rewards alone count."""
    assert reweighted(Step(5, 10))[0][0].tolist() == pytest.approx([1.025, 0.95, 1.05])
    assert reweighted(Step(10, 10))[0].tolist() == [[1, 1, 1], [1, 1, 1]]


def test_the_teacher_sees_the_solution():
    rollouts = SimpleNamespace(prompts=["1 + 1 = ?"], columns={"privileged_context": ["2"]})
    config = METHOD.config({"template": "{prompt} ({privileged_context})"})
    found = METHOD.teacher_prompts(rollouts=rollouts, rewards=None, config=config, state={})
    assert found == ["1 + 1 = ? (2)"]


def test_values_out_of_range_are_refused():
    with pytest.raises(SettingsError, match=r"mix is 1\.5, expected a number from 0 to 1"):
        METHOD.config({"mix": 1.5})


def test_goldens():
    results = evaluate(GOLDENS, "rlsd", [str(HERE)])
    assert {one.status for one in results} == {"equal"}, [one.line() for one in results]
    assert [one.quantity for one in results[0].comparisons] == ["loss", "advantages", "grad_logp_new"]
