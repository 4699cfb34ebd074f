"""BNPO against numbers worked by hand and the golden values."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
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
    """Means 2/3 and 1/3: sample variance 1/18, k = 3.5, alpha and beta 1 + 1.75 / 3 = 19/12, both symmetric.

    The density at 2/3 is (2/9)^(7/12) Gamma(19/6) / Gamma(19/12)^2."""
    found, columns = advantages([1, 0, 1, 0, 0, 1], [0, 0, 0, 1, 1, 1])
    density = (2 / 9) ** (7 / 12) * math.gamma(19 / 6) / math.gamma(19 / 12) ** 2
    assert columns["alpha"].tolist() == pytest.approx([19 / 12] * 6)
    assert found.tolist() == pytest.approx([one / 3 / density for one in (1, -2, 1, -1, -1, 2)])


def test_without_a_spread_of_rates_nothing_is_divided():
    """One group, or two with the same mean: REINFORCE with a baseline."""
    assert advantages([1, 0], [0, 0])[0].tolist() == [0.5, -0.5]
    assert advantages([1, 0, 0, 1], [0, 0, 1, 1])[0].tolist() == [0.5, -0.5, -0.5, 0.5]
    assert advantages([0.1, 0.1, 0.9, 0.9], [0, 0, 1, 1])[0].tolist() == [0, 0, 0, 0]


def test_rewards_are_scaled_to_0_and_1():
    found, _ = advantages([3, -1, 3, -1, -1, 3], [0, 0, 0, 1, 1, 1], options={"min_reward": -1.0, "max_reward": 3.0})
    assert found.tolist() == pytest.approx(advantages([1, 0, 1, 0, 0, 1], [0, 0, 0, 1, 1, 1])[0].tolist())


def test_loss_by_hand():
    """Ratios 1 and 3/2 (held at 1.28), summed; or token by token."""
    columns = {"alpha": WORTH, "beta": WORTH}
    assert loss_of(NEW, WORTH, MASK, OLD, **columns)[0].tolist() == pytest.approx([-4.56, 0.8])
    found, _ = loss_of(NEW, WORTH, MASK, OLD, {"aggregation": "token"}, **columns)
    assert found.tolist() == pytest.approx([-2, -2.56, 0.8])


def test_goldens():
    (result,) = evaluate(GOLDENS, "bnpo", [str(HERE)])
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "advantages", "grad_logp_new"]
