"""The z-loss against numbers worked by hand and the golden values."""

import math
from pathlib import Path

import pytest
from posttrain_testkit.goldens.compare import evaluate
from posttrain_testkit.numbers import loss_of

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "offline.json"


def test_by_hand():
    """Logits (ln 3, 0): log Z = ln 4, the token -ln(3/4). The penalty's slope is 2 c log Z p."""
    found = loss_of(HERE, {"logits": [[math.log(3.0), 0.0]], "labels": [0]}, z_weight=0.5)
    assert found.loss == pytest.approx(-math.log(0.75) + 0.5 * math.log(4) ** 2)
    slope = math.log(4)
    assert found.gradients["logits"][0][0] == pytest.approx([-0.25 + 0.75 * slope, 0.25 + 0.25 * slope])


def test_goldens():
    results = evaluate(GOLDENS, "sft-z-loss", [str(HERE)])
    assert [one.status for one in results] == ["equal"] * 1, [one.line() for one in results]
