import math

import pytest
from posttrain.contract.views import PerToken
from posttrain_testkit.by_hand import POLICY, REFERENCE


def test_by_hand(call_loss):
    """Means -2.5 and -2.4, -2 and -1.4: 2 * -0.1 - 1 = -1.2 and 2 * -0.6 - 1 = -2.2; log(1 + e^1.2) = 1.463282."""
    loss, _ = call_loss(POLICY, REFERENCE)
    assert loss["preference"].tolist() == pytest.approx([1.463282, math.log(1 + math.exp(2.2))], abs=1e-6)


def test_likelihood_is_per_token(call_loss):
    """S6: unreduced, so that the core divides by the tokens of the whole step."""
    loss, _ = call_loss(POLICY, REFERENCE, sft_weight=0.5)
    assert isinstance(loss["nll"], PerToken)
    assert loss["nll"].values.tolist() == [[0.5, 1, 1.5, 2], [1, 1, 1, 1]]
    assert loss["nll"].mask is POLICY.chosen.mask
