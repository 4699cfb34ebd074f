"""Dynamic fine-tuning against numbers worked by hand and the golden values."""

import math
from pathlib import Path

import pytest
from posttrain_testkit.goldens.compare import evaluate
from posttrain_testkit.numbers import loss_of

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "offline.json"


def test_by_hand():
    """Probabilities 1/2 and 1/4: (ln 2 / 2 + ln 4 / 4) / 2; the gradient by a token's log-prob is -p / 2."""
    found = loss_of(HERE, {"policy_tok": [[math.log(0.5), math.log(0.25)]]})
    assert found.loss == pytest.approx((math.log(2) / 2 + math.log(4) / 4) / 2)
    assert found.gradients["policy_tok"][0] == pytest.approx([-0.25, -0.125])


def test_goldens():
    results = evaluate(GOLDENS, "dft", [str(HERE)])
    assert [one.status for one in results] == ["equal"] * 1, [one.line() for one in results]
