"""The cost model against numbers worked by hand and the golden values."""

import math
from pathlib import Path

import pytest
from posttrain_testkit.goldens.compare import evaluate
from posttrain_testkit.numbers import loss_of

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "offline.json"


def test_by_hand():
    """Costs ln 3 and 0, the first harmful, the second harmless: ln(4/3) twice and ln 2."""
    inputs = {"reward_chosen": [math.log(3)], "reward_rejected": [0.0]}
    found = loss_of(HERE, inputs)
    assert found.loss == pytest.approx(2 * math.log(4 / 3) + math.log(2))
    assert found.gradients["reward_chosen"] == pytest.approx([-0.5])
    assert found.gradients["reward_rejected"] == pytest.approx([0.25 + 0.5])


def test_both_may_be_harmful():
    columns = {"is_harmful_chosen": [True], "is_harmful_rejected": [True]}
    found = loss_of(HERE, {"reward_chosen": [math.log(3)], "reward_rejected": [0.0]} | columns)
    assert found.gradients["reward_rejected"] == pytest.approx([0.25 - 0.5])


def test_goldens():
    results = evaluate(GOLDENS, "cost-model", [str(HERE)])
    assert [one.status for one in results] == ["equal"] * 1, [one.line() for one in results]
