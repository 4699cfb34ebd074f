"""AsymRE against numbers worked by hand and the golden values."""

from pathlib import Path

import pytest
from posttrain_testkit.goldens.compare import evaluate
from posttrain_testkit.numbers import loss_of

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "offline.json"


def test_by_hand():
    """Scores 1 and 0, mean 0.5, delta -0.25: advantages 0.75 and -0.25 on sums -2 and -4: (1.5 - 1) / 2."""
    found = loss_of(HERE, {"policy_logp": [-2.0, -4.0], "score": [1.0, 0.0]}, delta=-0.25)
    assert found.loss == pytest.approx(0.25)
    assert found.gradients["policy_logp"] == pytest.approx([-0.375, 0.125])


def test_the_prompts_own_scores_come_first():
    inputs = {"policy_logp": [-2.0], "score": [1.0], "group_scores": [[1.0, 0.0, 0.5]]}
    assert loss_of(HERE, inputs, delta=0.0).loss == pytest.approx(1)


def test_goldens():
    results = evaluate(GOLDENS, "asym-re", [str(HERE)])
    assert [one.status for one in results] == ["equal"] * 1, [one.line() for one in results]
