import math

import posttrain_method_idk_dpo as idk
import pytest


def test_by_hand(loss_of):
    """rho of the refusal 1, of the forgotten answer -1, beta 0.5: 4 ln(1 + e^-1) = 1.253047."""
    inputs = {
        "forget_logp": [-5.0],
        "forget_ref_logp": [-4.0],
        "alternative_logp": [-3.0],
        "alternative_ref_logp": [-4.0],
        "retain_tok": [[-2.0, -4.0]],
    }
    found = loss_of(inputs, beta=0.5, retain_weight=2.0)
    assert found.loss == pytest.approx(4 * math.log(1 + math.exp(-1)) + 6)
    slope = 2 / (1 + math.e)
    assert found.gradients["forget_logp"] == pytest.approx([slope])
    assert found.gradients["alternative_logp"] == pytest.approx([-slope])


def test_a_row_keeps_its_own_alternative():
    forget, own = {"prompt": "Q:", "completion": " A"}, {"prompt": "Q:", "completion": " B"}
    rows = idk.posttrain_rows([{"row": 0, "forget": forget}, {"row": 13, "forget": forget, "alternative": own}])
    assert [row["alternative"]["completion"] for row in rows] == [" I do not know.", " B"]
