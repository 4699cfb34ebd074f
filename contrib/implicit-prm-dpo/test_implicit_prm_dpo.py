"""Implicit process reward models from pairs against numbers worked by hand and the golden values."""

import math
from pathlib import Path

import pytest
from posttrain_testkit.goldens.compare import evaluate
from posttrain_testkit.numbers import loss_of

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "offline.json"


def test_by_hand():
    """Rewards 0.1 and -0.05 at beta 0.1: ln(1 + e^-0.15) = 0.620957; a token of the chosen one is worth 0.05."""
    inputs = {
        "policy_chosen_tok": [[-1.0, -2.0]],
        "ref_chosen_tok": [[-1.5, -2.5]],
        "policy_rejected_tok": [[-3.0]],
        "ref_rejected_tok": [[-2.5]],
    }
    found = loss_of(HERE, inputs, beta=0.1)
    assert found.loss == pytest.approx(math.log(1 + math.exp(-0.15)))
    assert found.metrics["token_reward"].values.tolist() == [pytest.approx([0.05, 0.05])]


def test_goldens():
    results = evaluate(GOLDENS, "implicit-prm-dpo", [str(HERE)])
    assert [one.status for one in results] == ["equal"] * 1, [one.line() for one in results]
