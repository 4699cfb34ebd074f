"""Gradient ascent against numbers worked by hand and the golden values."""

from pathlib import Path

import pytest
from posttrain_testkit.goldens.compare import evaluate
from posttrain_testkit.numbers import loss_of

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "offline.json"


def test_by_hand():
    """Tokens of log-prob -1, -2 and -6: their mean is -3, and each token's weight a third, upwards."""
    found = loss_of(HERE, {"forget_tok": [[-1.0, -2.0], [-6.0]]})
    assert found.loss == pytest.approx(-3)
    assert found.gradients["forget_tok"] == [pytest.approx([1 / 3, 1 / 3]), pytest.approx([1 / 3, 0])]


def test_goldens():
    results = evaluate(GOLDENS, "grad-ascent", [str(HERE)])
    assert [one.status for one in results] == ["equal"] * 1, [one.line() for one in results]
