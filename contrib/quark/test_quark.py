import math

import posttrain_method_quark as quark
import pytest


def test_by_hand(loss_of):
    """Policy (3/4, 1/4), reference (1/2, 1/2): KL(policy || reference) = ln 2 - H, with H = 0.562335."""
    inputs = {"logits": [[math.log(3.0), 0.0]], "ref_logits": [[0.0, 0.0]], "labels": [0], "score": [1.0]}
    found = loss_of(inputs, kl_weight=2.0, entropy_weight=1.0)
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert found.loss == pytest.approx(-math.log(0.75) + 2 * (math.log(2) - entropy) - entropy)


def test_prompts_are_told_their_quantile():
    rows = [{"row": n, "prompt": "p", "completion": "c", "score": s} for n, s in enumerate((3, 1, 2, 4))]
    made = quark.posttrain_rows(rows, quark.Config(quantiles=2))
    assert [row["quantile"] for row in made] == [2, 1, 1, 2]
    assert made[1]["prompt"] == "[quantile 1] p"
