"""The probability-based objective against numbers worked by hand and the golden values."""

import math
from pathlib import Path

import pytest
from posttrain_testkit.goldens.compare import evaluate
from posttrain_testkit.numbers import loss_of

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "offline.json"


def test_by_hand():
    """p = 1/2: 1 - p = 1/2; with alpha 2 (1 - 1/4) / 2 = 3/8. The gradient by log p is -p^alpha."""
    tokens = {"policy_tok": [[math.log(0.5)]]}
    assert loss_of(HERE, tokens).loss == pytest.approx(0.5)
    found = loss_of(HERE, tokens, alpha=2.0)
    assert found.loss == pytest.approx(0.375)
    assert found.gradients["policy_tok"][0] == pytest.approx([-0.25])
    assert loss_of(HERE, tokens, alpha=1e-6).loss == pytest.approx(math.log(2), abs=1e-5)


def test_goldens():
    results = evaluate(GOLDENS, "prob-sft", [str(HERE)])
    assert [one.status for one in results] == ["equal"] * 2, [one.line() for one in results]
