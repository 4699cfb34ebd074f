"""Humanline GRPO against numbers worked by hand and the golden values."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from posttrain.errors import SettingsError
from posttrain.methods import load
from posttrain.views import Batch, PerToken, Step, View, Views
from posttrain_testkit.goldens.compare import evaluate

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "online.json"
METHOD = load(str(HERE))
D = torch.float64


def matrix(*rows):
    return torch.tensor(rows, dtype=D)


def advantages(rewards, group, mask=None, options=None, state=None, **columns):
    group = torch.tensor(group)
    mask = torch.ones(len(group), 2, dtype=torch.bool) if mask is None else mask
    rollouts = SimpleNamespace(group=group, mask=mask, lengths=mask.sum(-1), **columns)
    config, state = METHOD.config(options or {}), {} if state is None else state
    rewards = torch.tensor(rewards, dtype=D)
    return METHOD.worth(rewards=rewards, rollouts=rollouts, config=config, state=state)


def loss_of(new, worth, mask, old=None, options=None, reference=None, **columns):
    """The unreduced loss, and the metrics; ``old`` are the log-probs of the policy that sampled."""
    columns |= {"advantages": worth, "old_logps": new.detach() if old is None else old}
    loss, metrics = METHOD.loss(
        batch=Batch(len(new), columns),
        policy=Views(completion=View(new, mask, entropy=torch.ones_like(new))),
        reference=None if reference is None else Views(completion=View(reference, mask)),
        config=METHOD.config(options or {}),
        step=Step(0, 1),
    )
    return loss.values[loss.mask] if isinstance(loss, PerToken) else loss, metrics


#: Ratios 1 and 3/2 for a good completion, 1/2 for a bad one of one token.
MASK = torch.tensor([[True, True], [True, False]])
OLD = matrix([-1.0, -2.0], [-0.5, 0.0])
NEW = OLD + matrix([1.0, 1.5], [0.5, 1.0]).log()
WORTH = torch.tensor([2.0, -1.0], dtype=D)


def test_advantages_by_hand():
    """Of {1, 0, 1}: population deviation 0.471405; 1/3 of 0.481405 is 0.692418. Equal rewards are worth nothing."""
    found, _ = advantages([1, 0, 1, 0.1, 0.1, 5], [0, 0, 0, 1, 1, 2])
    assert found.tolist() == pytest.approx([0.692418, -1.384837, 0.692418, 0, 0, 0], abs=1e-6)


def test_loss_by_hand():
    """Ratios to the reference 1, 3/2 (clipped at 1.2) and 1/2 (clipped at 0.8), without the divergence."""
    loss, _ = loss_of(NEW, WORTH, MASK, None, {"beta": 0.0}, OLD)
    assert loss.tolist() == pytest.approx([-2, -2.4, 0.8])
    k3 = [0.0, 2 / 3 - 1 + math.log(1.5), 2 - 1 - math.log(2)]
    loss, _ = loss_of(NEW, WORTH, MASK, None, {"beta": 1.0}, OLD)
    assert loss.tolist() == pytest.approx([-2 + k3[0], -2.4 + k3[1], 0.8 + k3[2]])


def test_beyond_the_band_there_is_no_gradient():
    """A bad token at a log-ratio of 2 costs e^1.5, one at 1 costs e and has a gradient."""
    new = (OLD + matrix([0.0, 0.0], [2.0, 0.0])).requires_grad_()
    loss, metrics = loss_of(new, WORTH, MASK, None, {"beta": 0.0}, OLD)
    loss[2].backward()
    assert (loss[2].item(), new.grad[1, 0].item()) == (pytest.approx(math.exp(1.5)), 0)
    assert metrics["held"].values[MASK].tolist() == [0, 0, 1]
    new = (OLD + matrix([0.0, 0.0], [1.0, 0.0])).requires_grad_()
    loss_of(new, WORTH, MASK, None, {"beta": 0.0}, OLD)[0][2].backward()
    assert new.grad[1, 0].item() == pytest.approx(math.e)


def test_a_band_without_1_is_refused():
    with pytest.raises(SettingsError, match=r"log_epsilon_low is 0\.1 and log_epsilon_high 1\.5, expected one below"):
        METHOD.config({"log_epsilon_low": 0.1})


def test_goldens():
    (result,) = evaluate(GOLDENS, "humanline-grpo", [str(HERE)])
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "advantages", "grad_logp_new"]
