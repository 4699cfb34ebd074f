"""Scalar regression against numbers worked by hand and the shared golden values."""

from pathlib import Path

import pytest
from posttrain.testing.goldens import evaluate
from posttrain.testing.numbers import loss_of

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / ".." / "shared" / "methods" / "goldens-offline.json"


def test_by_hand():
    """Errors 2 and -1."""
    found = loss_of(HERE, {"pred": [2.5, 0.0], "score": [0.5, 1.0]})
    assert found.loss == pytest.approx(2.5)
    assert found.gradients["pred"] == pytest.approx([2, -1])


@pytest.mark.skipif(not GOLDENS.exists(), reason="the shared golden values are not here")
def test_goldens():
    results = evaluate(GOLDENS, "rm-mse-scalar", [str(HERE)])
    assert [one.status for one in results] == ["equal"] * 1, [one.line() for one in results]
