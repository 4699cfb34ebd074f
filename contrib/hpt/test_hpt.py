import math
from types import SimpleNamespace

import pytest
import torch
from posttrain.contract.views import Batch, Step, View, Views
from posttrain_testkit.by_hand import MASK, NEW, OLD, WORTH


def test_the_gate(advantages_of):
    """Half of the first prompt's samples are right, none of the second's; demonstrations do not count."""
    source = ["policy", "policy", "data"] * 2
    found, columns = advantages_of([1, 0, 1, 0, 0, 1], [0, 0, 0, 1, 1, 1], source=source)
    assert found.tolist() == [0.5, -0.5, 0, 0, 0, 0]
    assert columns["gated"].tolist() == [0, 0, 0, 1, 1, 1]
    _, columns = advantages_of([1, 0, 1, 0, 0, 1], [0, 0, 0, 1, 1, 1], source=source, options={"gate": 0.5})
    assert columns["gated"].tolist() == [1] * 6


def test_what_is_explored_and_what_is_imitated(method):
    rows = [("policy", 0.0), ("data", 0.0), ("policy", 1.0), ("data", 1.0)]
    examples = [
        SimpleNamespace(columns={"source": who, "gated": gated}, sequences={"completion": [SimpleNamespace(count=2)]})
        for who, gated in rows
    ]
    found = method.annotate(examples=examples, models=None, config=method.config({}), state={})
    assert [tokens.tolist() for tokens in found["explored"]] == [[True] * 2, [False] * 2, [False] * 2, [False] * 2]
    assert [tokens.tolist() for tokens in found["imitated"]] == [[False] * 2, [False] * 2, [False] * 2, [True] * 2]


def test_loss_by_hand(method):
    """Ratios 1 and 3/2 (held at 1.2) of a sample; -0.5 log p of a demonstrated token."""
    explored, imitated = MASK & torch.tensor([[True], [False]]), MASK & torch.tensor([[False], [True]])
    columns = {"advantages": WORTH, "old_logps": OLD, "explored": explored, "imitated": imitated, "gated": WORTH}
    policy, config = Views(completion=View(NEW, MASK, entropy=torch.ones_like(NEW))), method.config({"sft_coef": 0.5})
    batch = Batch(2, columns)
    terms, _ = method.loss(batch=batch, policy=policy, reference=None, config=config, step=Step(0, 1))
    assert terms["policy"].values[explored].tolist() == pytest.approx([-2, -2.4])
    assert terms["imitation"].values[imitated].tolist() == pytest.approx([0.25 + 0.5 * math.log(2)])
