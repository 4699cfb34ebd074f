"""Conditional fine-tuning against numbers worked by hand and the golden values."""

from pathlib import Path

import posttrain_method_conditional_sft as conditional
import pytest
from posttrain_testkit.goldens.compare import evaluate
from posttrain_testkit.numbers import loss_of

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "offline.json"


def test_by_hand():
    found = loss_of(HERE, {"policy_tok": [[-1.0, -2.0], [-6.0]], "label": [True, False]})
    assert found.loss == pytest.approx(3)
    good, bad = found.metrics["nll_good"], found.metrics["nll_bad"]
    assert good.values[good.mask].tolist() == [1, 2]
    assert bad.values[bad.mask].tolist() == [6]


def test_prompts_get_their_control_token():
    talk = [{"role": "user", "content": "Hi"}]
    rows = [
        {"row": 0, "prompt": "Q:", "completion": " A", "label": True},
        {"row": 1, "prompt": talk, "completion": [], "label": False},
    ]
    made = conditional.posttrain_rows(rows, conditional.Config())
    assert made[0]["prompt"] == "Q:<|good|>"
    assert made[1]["prompt"] == [{"role": "user", "content": "Hi<|bad|>"}]


def test_goldens():
    results = evaluate(GOLDENS, "conditional-sft", [str(HERE)])
    assert [one.status for one in results] == ["equal"] * 1, [one.line() for one in results]
