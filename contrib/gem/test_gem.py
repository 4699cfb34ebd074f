"""GEM against numbers worked by hand and the golden values."""

import math
from pathlib import Path

import pytest
from posttrain_testkit.goldens.compare import evaluate
from posttrain_testkit.numbers import loss_of

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "offline.json"


def test_by_hand():
    """Logits (ln 3, 0), label 1, beta 1: q = (3/4, 1/4), so -3/4 (0 - ln 3); the gradient is q less one-hot."""
    found = loss_of(HERE, {"logits": [[math.log(3.0), 0.0]], "labels": [1]}, beta=1.0)
    assert found.loss == pytest.approx(0.75 * math.log(3))
    assert found.gradients["logits"][0][0] == pytest.approx([0.75, -0.75])


def test_goldens():
    results = evaluate(GOLDENS, "gem", [str(HERE)])
    assert [one.status for one in results] == ["equal"] * 2, [one.line() for one in results]
