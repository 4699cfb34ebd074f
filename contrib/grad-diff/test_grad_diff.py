"""Gradient difference against numbers worked by hand and the golden values."""

from pathlib import Path

import pytest
from posttrain_testkit.goldens.compare import evaluate
from posttrain_testkit.numbers import loss_of

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "offline.json"


def test_by_hand():
    """Forget tokens -1 and -3 (mean -2), retain tokens -1, -1, -4 (mean 2): 0.5 * -2 + 3 * 2 = 5."""
    inputs = {"forget_tok": [[-1.0, -3.0]], "retain_tok": [[-1.0, -1.0, -4.0]]}
    found = loss_of(HERE, inputs, forget_weight=0.5, retain_weight=3.0)
    assert found.loss == pytest.approx(5)
    assert found.terms == {"forget": pytest.approx(-1), "retain": pytest.approx(6)}
    assert found.gradients["forget_tok"][0] == pytest.approx([0.25, 0.25])
    assert found.gradients["retain_tok"][0] == pytest.approx([-1, -1, -1])


def test_goldens():
    results = evaluate(GOLDENS, "grad-diff", [str(HERE)])
    assert [one.status for one in results] == ["equal"] * 1, [one.line() for one in results]
