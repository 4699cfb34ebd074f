"""The hinge reward model against numbers worked by hand and the golden values."""

from pathlib import Path

import pytest
from posttrain_testkit.goldens.compare import evaluate
from posttrain_testkit.numbers import loss_of

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "offline.json"


def test_by_hand():
    """Differences 3, 0.5 and -1 with the distance 1: 0, 0.5 and 2."""
    inputs = {"reward_chosen": [3.0, 0.5, 0.0], "reward_rejected": [0.0, 0.0, 1.0]}
    found = loss_of(HERE, inputs)
    assert found.loss == pytest.approx(2.5 / 3)
    assert found.gradients["reward_chosen"] == pytest.approx([0, -1 / 3, -1 / 3])
    assert found.metrics["done"].tolist() == [1, 0, 0]


def test_goldens():
    results = evaluate(GOLDENS, "rm-hinge", [str(HERE)])
    assert [one.status for one in results] == ["equal"] * 1, [one.line() for one in results]
