"""QAE against numbers worked by hand and the golden values."""

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
    """Of 0, 0, 0, 0, 1 the second smallest is 0: only the success teaches. Of 0, 1, 1, 1, 1: 1, the failure."""
    rare, _ = advantages([0, 0, 1, 0, 0], [0] * 5)
    usual, _ = advantages([1, 1, 0, 1, 1], [0] * 5)
    deviation = (4 * 0.04 + 0.64) ** 0.5 / 2
    assert rare.tolist() == pytest.approx([0, 0, 1 / deviation, 0, 0], abs=1e-5)
    assert usual.tolist() == pytest.approx([0, 0, -1 / deviation, 0, 0], abs=1e-5)


def test_a_quantile_of_nothing_is_refused():
    with pytest.raises(SettingsError, match=r"quantile is 0\.0, expected a number above 0 and up to 1"):
        METHOD.config({"quantile": 0.0})


def test_loss_is_clipped_and_averaged_over_tokens():
    """Ratios 1, 3/2 and 1/2 under advantages 2 and -1: -2, -2 * 1.28 and 0.8."""
    assert loss_of(NEW, WORTH, MASK, OLD, baseline=WORTH)[0].tolist() == pytest.approx([-2, -2.56, 0.8])


def test_goldens():
    (result,) = evaluate(GOLDENS, "qae", [str(HERE)])
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "advantages", "grad_logp_new"]
