import posttrain_method_conditional_sft as conditional
import pytest


def test_by_hand(loss_of):
    found = loss_of({"policy_tok": [[-1.0, -2.0], [-6.0]], "label": [True, False]})
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
