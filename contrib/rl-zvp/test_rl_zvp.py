"""RL-ZVP against numbers worked by hand and the golden values."""

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
    """All right: 0.1 H. All wrong: -0.1 (max H - H). Otherwise by GRPO, for all tokens alike."""
    mask = torch.tensor([[True, True]] * 4 + [[True, False]] * 2)
    entropy = matrix([1.0, 2.0], [0.5, 0.0], [1.0, 0.4], [0.2, 0.6], [3.0, 0.0], [3.0, 0.0])
    found, columns = advantages([1, 1, 0, 0, 1, 0], [0, 0, 1, 1, 2, 2], mask, old=lambda name: entropy)
    expected = [[0.1, 0.2], [0.05, 0], [0, -0.06], [-0.04, 0], [0.707106, 0], [-0.707106, 0]]
    assert found.flatten().tolist() == pytest.approx([one for row in expected for one in row], abs=1e-6)
    assert columns["zero_variance"].tolist() == [1, 1, 1, 1, 0, 0]


def test_loss_is_clipped_and_averaged_over_tokens():
    """Ratios 1, 3/2 and 1/2 under advantages 2 and -1: -2, -2 * 1.28 and 0.8."""
    assert loss_of(NEW, WORTH, MASK, OLD, zero_variance=WORTH)[0].tolist() == pytest.approx([-2, -2.56, 0.8])


def test_goldens():
    (result,) = evaluate(GOLDENS, "rl-zvp", [str(HERE)])
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "advantages", "grad_logp_new"]
