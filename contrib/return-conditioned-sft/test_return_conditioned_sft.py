"""Return-conditioned fine-tuning against numbers worked by hand and the golden values."""

from pathlib import Path

import posttrain_method_return_conditioned_sft as conditioned
import pytest
from posttrain_testkit.goldens.compare import evaluate
from posttrain_testkit.numbers import loss_of

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "offline.json"


def test_by_hand():
    assert loss_of(HERE, {"policy_tok": [[-1.0, -2.0], [-6.0]], "score": [1.0, 2.0]}).loss == pytest.approx(3)


def test_prompts_are_told_their_bin():
    """Ten scores in five bins of two each."""
    rows = [{"row": n, "prompt": "p", "completion": "c", "score": n / 10} for n in range(10)]
    made = conditioned.posttrain_rows(rows, conditioned.Config())
    assert [row["bin"] for row in made] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert made[0]["prompt"] == "[return 1] p"
    assert [row["best"] for row in made].count(True) == 2


def test_goldens():
    results = evaluate(GOLDENS, "return-conditioned-sft", [str(HERE)])
    assert [one.status for one in results] == ["equal"] * 1, [one.line() for one in results]
