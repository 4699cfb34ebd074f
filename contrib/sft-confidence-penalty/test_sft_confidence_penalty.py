"""The confidence penalty against numbers worked by hand and the golden values."""

import math
from pathlib import Path

import pytest
from posttrain_testkit.goldens.compare import evaluate
from posttrain_testkit.numbers import loss_of

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "offline.json"


def test_by_hand():
    """Policy (3/4, 1/4): H = 0.562335; dH/dz_i = -p_i (log p_i + H)."""
    found = loss_of(HERE, {"logits": [[math.log(3.0), 0.0]], "labels": [0]}, beta=0.5)
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert found.loss == pytest.approx(-math.log(0.75) - 0.5 * entropy)
    slope = 0.5 * 0.75 * (math.log(0.75) + entropy)
    assert found.gradients["logits"][0][0] == pytest.approx([-0.25 + slope, 0.25 - slope])


def test_goldens():
    results = evaluate(GOLDENS, "sft-confidence-penalty", [str(HERE)])
    assert [one.status for one in results] == ["equal"] * 1, [one.line() for one in results]
