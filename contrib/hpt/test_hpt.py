"""HPT against numbers worked by hand and the golden values."""

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


def test_the_gate():
    """Half of the first prompt's samples are right, none of the second's; demonstrations do not count."""
    source = ["policy", "policy", "data"] * 2
    found, columns = advantages([1, 0, 1, 0, 0, 1], [0, 0, 0, 1, 1, 1], source=source)
    assert found.tolist() == [0.5, -0.5, 0, 0, 0, 0]
    assert columns["gated"].tolist() == [0, 0, 0, 1, 1, 1]
    _, columns = advantages([1, 0, 1, 0, 0, 1], [0, 0, 0, 1, 1, 1], source=source, options={"gate": 0.5})
    assert columns["gated"].tolist() == [1] * 6


def test_what_is_explored_and_what_is_imitated():
    rows = [("policy", 0.0), ("data", 0.0), ("policy", 1.0), ("data", 1.0)]
    examples = [
        SimpleNamespace(columns={"source": who, "gated": gated}, sequences={"completion": [SimpleNamespace(count=2)]})
        for who, gated in rows
    ]
    found = METHOD.annotate(examples=examples, models=None, config=METHOD.config({}), state={})
    assert [tokens.tolist() for tokens in found["explored"]] == [[True] * 2, [False] * 2, [False] * 2, [False] * 2]
    assert [tokens.tolist() for tokens in found["imitated"]] == [[False] * 2, [False] * 2, [False] * 2, [True] * 2]


def test_loss_by_hand():
    """Ratios 1 and 3/2 (held at 1.2) of a sample; -0.5 log p of a demonstrated token."""
    explored, imitated = MASK & torch.tensor([[True], [False]]), MASK & torch.tensor([[False], [True]])
    columns = {"advantages": WORTH, "old_logps": OLD, "explored": explored, "imitated": imitated, "gated": WORTH}
    policy, config = Views(completion=View(NEW, MASK, entropy=torch.ones_like(NEW))), METHOD.config({"sft_coef": 0.5})
    batch = Batch(2, columns)
    terms, _ = METHOD.loss(batch=batch, policy=policy, reference=None, config=config, step=Step(0, 1))
    assert terms["policy"].values[explored].tolist() == pytest.approx([-2, -2.4])
    assert terms["imitation"].values[imitated].tolist() == pytest.approx([0.25 + 0.5 * math.log(2)])


def test_goldens():
    (result,) = evaluate(GOLDENS, "hpt", [str(HERE)])
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "advantages", "grad_logp_new"]
