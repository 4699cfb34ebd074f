"""Cross-entropy unlearning against numbers worked by hand and the golden values."""

import math
from pathlib import Path

import pytest
from posttrain_testkit.goldens.compare import evaluate
from posttrain_testkit.numbers import loss_of

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "offline.json"


def test_by_hand():
    """Probabilities (1/2, 1/4, 1/4), the first to be forgotten: -(ln(1/4) + ln(1/4)) / 2 = ln 4."""
    inputs = {"policy_forget_logits": [[math.log(2.0), 0.0, 0.0]], "forget_labels": [0]}
    found = loss_of(HERE, inputs, ignore_first=0)
    assert found.loss == pytest.approx(math.log(4))
    # policy less target, by logit
    assert found.gradients["policy_forget_logits"][0][0] == pytest.approx([0.5, -0.25, -0.25])


def test_the_first_tokens_do_not_count():
    both = {"policy_forget_logits": [[5.0, 0.0], [0.0, 0.0]], "forget_labels": [0, 0]}
    found = loss_of(HERE, both)
    assert found.loss == pytest.approx(math.log(2))
    assert found.gradients["policy_forget_logits"][0][0] == [0, 0]


def test_goldens():
    results = evaluate(GOLDENS, "ce-u", [str(HERE)])
    assert [one.status for one in results] == ["equal"] * 1, [one.line() for one in results]
