from functools import partial
from types import SimpleNamespace

import pytest
from posttrain.contract.views import Step
from posttrain.errors import SettingsError
from posttrain_testkit.by_hand import call_loss, method_beside, tensor

METHOD = method_beside(__file__)
loss_of = partial(call_loss, METHOD)


OLD = tensor([-1.0, -2.0, -3.0], [-1.0, -2.0, -3.0])
#: The teacher finds the tokens 1.1 times as likely, half as likely, and twice as likely.
TEACHER = OLD + tensor(1.1, 0.5, 2.0).log()


def reweighted(step=None, **options):
    columns = {"advantages": tensor(2.0, -1.0), "old_logps": OLD, "teacher_logps": TEACHER}
    _, metrics = loss_of(OLD, columns=columns, step=step, **options)
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
