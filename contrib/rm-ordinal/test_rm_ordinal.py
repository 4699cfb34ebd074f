"""Ordinal feedback against numbers worked by hand and the golden values."""

import math
from pathlib import Path

import pytest
from posttrain_testkit.goldens.compare import evaluate
from posttrain_testkit.numbers import loss_of

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "offline.json"


def test_by_hand():
    """sigmoid(d) = 3/4 where people are three to one: the entropy of that, and no gradient left."""
    inputs = {"reward_chosen": [math.log(3)], "reward_rejected": [0.0], "level": [0.75]}
    found = loss_of(HERE, inputs)
    assert found.loss == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert found.gradients["reward_chosen"] == pytest.approx([0], abs=1e-12)
    del inputs["level"]
    assert loss_of(HERE, inputs).loss == pytest.approx(math.log(4 / 3))


def test_goldens():
    results = evaluate(GOLDENS, "rm-ordinal", [str(HERE)])
    assert [one.status for one in results] == ["equal"] * 1, [one.line() for one in results]
