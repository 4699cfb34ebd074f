"""Offline GRPO against numbers worked by hand and the golden values."""

import math
from pathlib import Path

import pytest
from posttrain_testkit.goldens.compare import evaluate
from posttrain_testkit.numbers import loss_of

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "offline.json"


def test_by_hand():
    """Scores 3 and 1: mean 2, deviation 1, advantages 1 and -1. Ratios 1.5 (clipped at 1.2) and 1."""
    inputs = {
        "policy_tok": [[-1.0], [-2.0]],
        "ref_tok": [[-1.0 - math.log(1.5)], [-2.0]],
        "score": [3.0, 1.0],
    }
    found = loss_of(HERE, inputs, beta=0.0, floor=0.0)
    assert found.loss == pytest.approx((-1.2 + 1) / 2)
    assert found.gradients["policy_tok"] == [[0.0], [pytest.approx(0.5)]]
    assert found.metrics["clipped"].values.flatten().tolist() == [1, 0]


def test_the_prompts_own_scores_come_first():
    """A constant added to all scores of a group changes nothing."""

    def of(shift):
        groups = {"group_scores": [[2.0 + shift, 0.0 + shift]]}
        return loss_of(HERE, {"policy_tok": [[-1.0]], "ref_tok": [[-1.5]], "score": [2.0 + shift]} | groups).loss

    assert of(0.0) == pytest.approx(of(5.0))


def test_goldens():
    results = evaluate(GOLDENS, "offline-grpo", [str(HERE)])
    assert [one.status for one in results] == ["equal"] * 1, [one.line() for one in results]
