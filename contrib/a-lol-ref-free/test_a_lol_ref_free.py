import posttrain_method_a_lol_ref_free as free
import pytest


def test_by_hand(loss_of):
    found = loss_of({"policy_tok": [[-1.0, -2.0], [-4.0]], "advantage": [0.5, 0.0], "score": [1.0, 0.0]})
    assert found.loss == pytest.approx(0.75)
    assert found.gradients["policy_tok"][0] == pytest.approx([-0.25, -0.25])


def test_advantages_are_over_the_value_and_never_negative():
    rows = [
        {"score": 1.0, "group_scores": [1.0, 0.0]},
        {"score": 0.0, "group_scores": [1.0, 0.0]},
        {"score": 1.0, "value": 0.25},
        {"score": 1.0, "advantage": 7.0},
    ]
    assert [row["advantage"] for row in free.posttrain_rows(rows)] == [0.5, 0, 0.75, 7]
