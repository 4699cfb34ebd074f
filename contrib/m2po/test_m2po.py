"""M2PO against numbers worked by hand and the golden values."""

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


def kept(*log_ratios, **options):
    """Annotate completions whose tokens have these log-ratios to their sampler."""
    rows = [torch.tensor(row, dtype=D) for row in log_ratios]
    examples = [SimpleNamespace(sequences={"completion": [sequence_of(row)]}, columns={}) for row in rows]
    models = SimpleNamespace(logps=lambda sequences, model: rows)
    found = METHOD.annotate(examples=examples, models=models, config=METHOD.config(options), state={})
    return [row.tolist() for row in found["kept"]]


def sequence_of(row):
    return SimpleNamespace(per_token={"sampled_logps": torch.zeros_like(row)})


def test_the_largest_go_first():
    """Squares 0.01, 0.09, 0.01, 0.25: means 0.01, 0.01, 0.0367, 0.09, of which three lie below 0.04."""
    assert kept([0.1, -0.3], [0.1, 0.5]) == [[1, 1], [1, 0]]
    assert kept([0.1, -0.3], [0.1, 0.5], m2_threshold=0.03) == [[1, 0], [1, 0]]


def test_fresh_samples_are_kept_and_hopeless_ones_are_not():
    assert kept([0.0, 0.0], [0.0]) == [[1, 1], [1]]
    assert kept([3.0], [2.0]) == [[0], [0]]


def test_loss_by_hand():
    """Ratios 1, 3/2 and 1/2; the second is left out."""
    loss, _ = loss_of(NEW, WORTH, MASK, NEW, sampled_logps=OLD, kept=matrix([1.0, 0.0], [1.0, 1.0]))
    assert loss.tolist() == pytest.approx([-2, 0, 0.5])


def test_advantages_by_hand():
    """Of {1, 0, 1}: mean 2/3, sample deviation 0.577350. Equal rewards are worth nothing, also a lone one's."""
    found, _ = advantages([1, 0, 1, 0.1, 0.1, 5], [0, 0, 0, 1, 1, 2])
    assert found.tolist() == pytest.approx([0.577349, -1.154699, 0.577349, 0, 0, 0], abs=1e-6)


def test_goldens():
    (result,) = evaluate(GOLDENS, "m2po", [str(HERE)])
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "advantages", "grad_logp_new"]
