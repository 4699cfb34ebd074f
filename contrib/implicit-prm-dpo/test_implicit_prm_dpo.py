import math

import pytest


def test_by_hand(loss_of):
    """Rewards 0.1 and -0.05 at beta 0.1: ln(1 + e^-0.15) = 0.620957; a token of the chosen one is worth 0.05."""
    inputs = {
        "policy_chosen_tok": [[-1.0, -2.0]],
        "ref_chosen_tok": [[-1.5, -2.5]],
        "policy_rejected_tok": [[-3.0]],
        "ref_rejected_tok": [[-2.5]],
    }
    found = loss_of(inputs, beta=0.1)
    assert found.loss == pytest.approx(math.log(1 + math.exp(-0.15)))
    assert found.metrics["token_reward"].values.tolist() == [pytest.approx([0.05, 0.05])]
