import math

import posttrain_method_idk_ap as idk
import pytest


def test_by_hand(loss_of):
    """The answer is a nat less likely than a refusal, beta 0.5: 2 ln(1 + e^0.5) = 1.948154; refusal tokens 1 and 3."""
    inputs = {"alternative_tok": [[-1.0, -3.0]], "retain_logp": [-5.0], "retain_alternative_logp": [-4.0]}
    found = loss_of(inputs, beta=0.5)
    assert found.loss == pytest.approx(2 + 2 * math.log(1 + math.exp(0.5)))
    slope = 1 / (1 + math.exp(-0.5))
    assert found.gradients["retain_logp"] == pytest.approx([-slope])
    assert found.gradients["retain_alternative_logp"] == pytest.approx([slope])


def test_both_prompts_are_refused():
    row = {"row": 0, "forget": {"prompt": "F:", "completion": " f"}, "retain": {"prompt": "R:", "completion": " r"}}
    (made,) = idk.posttrain_rows([row])
    assert made["alternative"]["prompt"] == "F:"
    assert made["retain_alternative"]["prompt"] == "R:"
    assert made["alternative"]["completion"] != made["retain_alternative"]["completion"]
