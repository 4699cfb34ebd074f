import math

import posttrain_method_a_lol as a_lol
import pytest


def test_by_hand(loss_of):
    """Advantage 0.5; log-ratios ln 1.5 and 0: the sequence's ratio is 1.5. The other answer has none left."""
    lift = math.log(1.5)
    inputs = {
        "policy_tok": [[-1.0, -2.0], [-3.0]],
        "ref_tok": [[-1.0 - lift, -2.0], [-3.0]],
        "score": [1.0, 0.2],
        "value": [0.5, 0.5],
    }
    found = loss_of(inputs)
    assert found.loss == pytest.approx(0.5 * 1.5 * 3 / 2)
    assert found.gradients["policy_tok"] == [pytest.approx([-0.375, -0.375]), pytest.approx([0, 0])]
    assert loss_of(inputs, ratio="token").loss == pytest.approx(0.5 * (1.5 + 2) / 2)
    assert loss_of(inputs, clip=0.2).loss == pytest.approx(0.5 * 1.2 * 3 / 2)


def test_a_missing_value_is_the_mean_of_the_group_or_of_all():
    rows = [{"score": 1.0, "group_scores": [1.0, 0.0]}, {"score": 0.0}, {"score": 0.5, "value": 9.0}]
    assert [row["value"] for row in a_lol.posttrain_rows(rows)] == [0.5, 0.5, 9.0]
