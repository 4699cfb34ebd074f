"""GDPO against numbers worked by hand and the golden values."""

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


def of_parts(*parts, **options):
    named = {f"reward {place}": torch.tensor(part, dtype=D) for place, part in enumerate(parts)}
    return advantages(parts[0], [0, 0, 1, 1], reward_parts=named, options=options)[0].tolist()


def test_each_reward_counts_the_same():
    """One reward in hundreds, one in units, at odds in the first group: nothing; they agree in the second: 1 and -1.

    Sums are 0, 0, 2 / sqrt 2 and -2 / sqrt 2; their deviation is sqrt(4 / 3)."""
    found = of_parts([100.0, 0, 100, 0], [0.0, 1, 1, 0], advantage_epsilon=1e-9)
    assert found == pytest.approx([0, 0, 2**0.5 / (4 / 3) ** 0.5, -(2**0.5) / (4 / 3) ** 0.5], abs=1e-6)


def test_weights_and_what_is_not_scored():
    assert of_parts([1.0, 0, 1, 0], [0.0, 1, 0, 1], weights=(1.0, 0.0)) == of_parts([1.0, 0, 1, 0])
    assert of_parts([1.0, 0, 1, 0], [math.nan] * 4) == of_parts([1.0, 0, 1, 0])
    assert of_parts([0.1, 0.1, 0.1, 0.1]) == [0, 0, 0, 0]
    with pytest.raises(SettingsError, match="weights has 1 values for 2 rewards"):
        of_parts([1.0, 0, 1, 0], [0.0, 1, 0, 1], weights=(1.0,))


def test_loss_is_averaged_over_a_completion():
    assert loss_of(NEW, WORTH, MASK, OLD)[0].tolist() == pytest.approx([-2.2, 0.8])


def test_goldens():
    (result,) = evaluate(GOLDENS, "gdpo", [str(HERE)])
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "advantages", "grad_logp_new"]
