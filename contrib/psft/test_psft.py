"""Proximal supervised fine-tuning against numbers worked by hand and the golden values."""

import math
from pathlib import Path

import pytest
from posttrain_testkit.goldens.compare import evaluate
from posttrain_testkit.numbers import loss_of

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "offline.json"


def test_by_hand():
    """Ratios 1, 1.5 (clipped at 1.2) and 0.5 (not clipped: it may always come back)."""
    tokens = [-1.0, -2.0, -3.0]
    snapshot = [-1.0, -2.0 - math.log(1.5), -3.0 + math.log(2)]
    found = loss_of(HERE, {"policy_tok": [tokens], "ref_tok": [snapshot]})
    assert found.loss == pytest.approx(-(1 + 1.2 + 0.5) / 3)
    assert found.gradients["policy_tok"][0] == pytest.approx([-1 / 3, 0, -0.5 / 3])
    assert found.metrics["clipped"].values.tolist() == [[0, 1, 0]]


def test_at_a_snapshot_the_gradient_is_that_of_likelihood():
    found = loss_of(HERE, {"policy_tok": [[-1.0, -2.0]], "ref_tok": [[-1.0, -2.0]]})
    assert found.loss == pytest.approx(-1)
    assert found.gradients["policy_tok"][0] == pytest.approx([-0.5, -0.5])


def test_goldens():
    results = evaluate(GOLDENS, "psft", [str(HERE)])
    assert [one.status for one in results] == ["equal"] * 1, [one.line() for one in results]
