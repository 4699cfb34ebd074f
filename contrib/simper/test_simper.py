import math

import pytest
from posttrain.contract.views import View, Views
from posttrain_testkit.by_hand import POLICY, REFERENCE


def test_by_hand(call_loss):
    """e^-2.4 - e^-2.5 = 0.090718 - 0.082085 = 0.008633; e^-1.4 - e^-2 = 0.246597 - 0.135335."""
    assert call_loss(POLICY, REFERENCE)[0].tolist() == pytest.approx([0.008633, 0.111262], abs=1e-6)


def test_unlikely_answers_hardly_pull(call_loss):
    """The gradient by a token is the answer's inverse perplexity over its length: e^-2.5 / 4."""
    chosen = POLICY.chosen.logps.clone().requires_grad_()
    call_loss(Views(chosen=View(chosen, POLICY.chosen.mask), rejected=POLICY.rejected), REFERENCE)[0].sum().backward()
    assert chosen.grad[0].tolist() == pytest.approx([-math.exp(-2.5) / 4] * 4)
