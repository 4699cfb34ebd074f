"""Turn-PPO against numbers worked by hand, and a run on episodes."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from posttrain import Environment, Observation, api
from posttrain.contract.views import View, Views
from posttrain.errors import SettingsError
from posttrain_testkit.by_hand import NEW, OLD, call_loss, method_beside, tensor
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer

METHOD = method_beside(__file__)
#: Two turns of two tokens and of one; one turn of one token.
MASK = torch.tensor([[True, True, True], [True, False, False]])
TURN = torch.tensor([[0, 0, 1], [0, 0, 0]])
VALUES = tensor([0.5, 9.0, 0.75], [0.25, 9.0, 9.0])  # what stands inside of a turn is nobody's value


def worked_out(turn_rewards=((0.25, 1.0), (0.5, 0.0)), **options):
    earned = tensor(*turn_rewards)
    rollouts = SimpleNamespace(mask=MASK, turn=TURN, turn_rewards=earned, old=lambda name: {"values": VALUES}[name])
    return METHOD.advantages(rewards=earned.sum(1), rollouts=rollouts, config=METHOD.config(options), state={})


def test_advantages_of_turns_by_hand():
    """Gamma and lambda 1/2. Surprises: 0.25 + 0.75 / 2 - 0.5 = 0.125 and 1 - 0.75 = 0.25; backwards with 1/4: 0.25 and
    0.1875. The other: 0.5 - 0.25 = 0.25. Returns: 0.6875, 1 and 0.5. Whitened over three turns of mean 0.2291667 and
    sample variance (0.0416667^2 + 2 * 0.0208333^2) / 2 = 0.0013021.
    """
    found = worked_out(gamma=0.5, gae_lambda=0.5)
    assert found["returns"].tolist() == [pytest.approx([0.6875, 0.6875, 1.0]), pytest.approx([0.5, 0, 0])]
    low, high = ((x - 0.2291667) / math.sqrt(0.0013021) for x in (0.1875, 0.25))
    assert found["advantages"].tolist() == [
        pytest.approx([low, low, high], abs=1e-3),
        pytest.approx([high, 0, 0], abs=1e-3),
    ]
    assert found["begins"].tolist() == [[True, False, True], [True, False, False]]


def test_lambda_one_is_return_less_value_and_zero_is_one_step():
    assert worked_out(gamma=1.0, gae_lambda=1.0)["returns"][MASK].tolist() == pytest.approx([1.25, 1.25, 1.0, 0.5])
    assert worked_out(gamma=1.0, gae_lambda=0.0)["returns"][MASK].tolist() == pytest.approx([1.0, 1.0, 1.0, 0.5])


def test_a_discount_beyond_one_is_refused():
    with pytest.raises(SettingsError, match=r"gamma is 1\.5, expected a number from 0 to 1"):
        METHOD.config({"gamma": 1.5})


def test_losses_by_hand():
    """Ratios 1, 3/2 and 1/2 at advantages 3, 2 and -1: -3, -2.4 as 1.5 is clipped, 0.8 as 1/2 is. Values count where a
    turn begins: (0.5 - 1)^2 and, held at 0.3 as 0.1 is beyond 0.2 of 0.5, 0.3^2; times 0.1 / 2.
    """
    mask, begins = torch.tensor([[True, True], [True, False]]), torch.tensor([[True, False], [True, False]])
    columns = {
        "advantages": tensor([3.0, 2.0], [-1.0, 0.0]),
        "old_logps": OLD,
        "old_values": tensor([0.4, 7.0], [0.5, 0.0]),
        "returns": tensor([1.0, 1.0], [0.0, 0.0]),
        "begins": begins,
        "explained_variance": tensor(0.3, 0.3),
    }
    view = View(NEW, mask, values=tensor([0.5, 7.0], [0.1, 0.0]))
    terms, metrics = call_loss(METHOD, Views(completion=view), None, columns)
    assert terms["policy_loss"].values[mask].tolist() == pytest.approx([-3, -2.4, 0.8])
    assert terms["value_loss"].mask is begins
    assert terms["value_loss"].values[begins].tolist() == pytest.approx([0.0125, 0.0045])
    assert metrics["value_clipped"].values[begins].tolist() == [0, 1]


class Echo(Environment):
    """Two turns; the second is worth something."""

    turns = 0

    def step(self, message):
        self.turns += 1
        return Observation("hh", float(self.turns == 2), done=self.turns == 2)


def test_values_of_turns_are_learnt(tmp_path):
    rows = [{"prompt": text} for text in ("ab", "abc", "a", "dcba")]
    run = api.train(
        METHOD,
        model=tiny_model(),
        tokenizer=tiny_tokenizer(),
        data=rows,
        environment=Echo,
        output=str(tmp_path / "run"),
        batch_size=4,
        group_size=2,
        steps=8,
        max_new_tokens=6,
        learning_rate=2e-3,
        progress="quiet",
        cache="off",
        device="cpu",
    )
    errors = [line["value_error"] for line in run.metrics]
    assert errors[3] < errors[0]
    assert all(line["loss"] == line["loss"] for line in run.metrics)
    assert (Path(run.path) / "model" / "extra_modules.safetensors").is_file()
