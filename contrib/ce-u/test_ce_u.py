import math

import pytest


def test_by_hand(loss_of):
    """Probabilities (1/2, 1/4, 1/4), the first to be forgotten: -(ln(1/4) + ln(1/4)) / 2 = ln 4."""
    inputs = {"policy_forget_logits": [[math.log(2.0), 0.0, 0.0]], "forget_labels": [0]}
    found = loss_of(inputs, ignore_first=0)
    assert found.loss == pytest.approx(math.log(4))
    # policy less target, by logit
    assert found.gradients["policy_forget_logits"][0][0] == pytest.approx([0.5, -0.25, -0.25])


def test_the_first_tokens_do_not_count(loss_of):
    both = {"policy_forget_logits": [[5.0, 0.0], [0.0, 0.0]], "forget_labels": [0, 0]}
    found = loss_of(both)
    assert found.loss == pytest.approx(math.log(2))
    assert found.gradients["policy_forget_logits"][0][0] == [0, 0]
