"""BAPO against numbers worked by hand and the golden values."""

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


def examples_of(new, old, worth, groups):
    """Examples with these log-probs now and under the sampler, advantages and groups, and the models that say so."""
    new, old = ([torch.tensor(row, dtype=D) for row in rows] for rows in (new, old))
    sequences = [SimpleNamespace(per_token={"old_logps": row}) for row in old]
    columns = [{"advantages": a, "group": float(g)} for a, g in zip(worth, groups, strict=True)]
    examples = [
        SimpleNamespace(sequences={"completion": [one]}, columns=row)
        for one, row in zip(sequences, columns, strict=True)
    ]
    return examples, SimpleNamespace(logps=lambda sequences, model: new)


def bounds(new, worth, **options):
    examples, models = examples_of(new, [[0.0] * len(row) for row in new], worth, [0] * len(new))
    found = METHOD.annotate(examples=examples, models=models, config=METHOD.config(options), state={})
    return [found[name][0].item() for name in ("clip_floor", "clip_ceiling", "balance")]


def test_bounds_move_until_the_balance_is_reached():
    """A good token at a ratio of 2 weighs 1.2 against a bad one at 1: enough for 1.2, not for 1.5. To raise the lower
    bound does not help at a ratio of 1; 15 steps of the upper one do."""
    rows = [[math.log(2)], [0.0]]
    assert bounds(rows, [1.0, -1.0], target_pos_neg_ratio=1.19)[:2] == pytest.approx([0.6, 1.2])
    assert bounds(rows, [1.0, -1.0], target_pos_neg_ratio=1.499) == pytest.approx([0.9, 1.5, 1.5])
    assert bounds(rows, [1.0, -1.0], target_pos_neg_ratio=9.0) == pytest.approx([0.9, 3.0, 2.0])


def test_nothing_to_balance():
    assert bounds([[0.0], [0.0]], [1.0, 1.0])[:2] == pytest.approx([0.6, 1.2])
    assert bounds([[0.0], [0.0]], [0.0, 0.0])[:2] == pytest.approx([0.9, 3.0])


def test_loss_by_hand():
    """Bounds 0.7 and 1.4: ratios 1, 3/2 (held) and 1/2 (held); a bad token at a ratio of 5 costs 3."""
    columns = {name: torch.full((2,), value) for name, value in (("clip_floor", 0.7), ("clip_ceiling", 1.4))}
    columns["balance"] = WORTH
    loss, _ = loss_of(NEW, WORTH, MASK, OLD, **columns)
    assert loss.tolist() == pytest.approx([-2, -2.8, 0.7])
    assert loss_of(OLD + math.log(5), WORTH, MASK, OLD, **columns)[0][2].item() == pytest.approx(3)


def test_advantages_by_hand():
    """Of {1, 0, 1}: mean 2/3, sample deviation 0.577350. Equal rewards are worth nothing, also a lone one's."""
    found, _ = advantages([1, 0, 1, 0.1, 0.1, 5], [0, 0, 0, 1, 1, 2])
    assert found.tolist() == pytest.approx([0.577349, -1.154699, 0.577349, 0, 0, 0], abs=1e-6)


def test_goldens():
    (result,) = evaluate(GOLDENS, "bapo", [str(HERE)])
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "advantages", "grad_logp_new"]
