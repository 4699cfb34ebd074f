"""Focal fine-tuning against numbers worked by hand and the golden values."""

import math
from pathlib import Path

import pytest
from posttrain_testkit.goldens.compare import evaluate
from posttrain_testkit.numbers import loss_of

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "offline.json"


def test_by_hand():
    """p = 1/2, gamma 2: ln 2 / 4. By log p: -(1 - p)^2 + 2 p (1 - p) log p = -1/4 - ln 2 / 2."""
    found = loss_of(HERE, {"policy_tok": [[math.log(0.5)]]})
    assert found.loss == pytest.approx(math.log(2) / 4)
    assert found.gradients["policy_tok"][0] == pytest.approx([-0.25 - math.log(2) / 2])
    assert loss_of(HERE, {"policy_tok": [[-3.0, -1.0]]}, gamma=0.0).loss == pytest.approx(2)


def test_goldens():
    results = evaluate(GOLDENS, "sft-focal", [str(HERE)])
    assert [one.status for one in results] == ["equal"] * 1, [one.line() for one in results]
