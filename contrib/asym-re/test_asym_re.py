import pytest


def test_by_hand(loss_of):
    """Scores 1 and 0, mean 0.5, delta -0.25: advantages 0.75 and -0.25 on sums -2 and -4: (1.5 - 1) / 2."""
    found = loss_of({"policy_logp": [-2.0, -4.0], "score": [1.0, 0.0]}, delta=-0.25)
    assert found.loss == pytest.approx(0.25)
    assert found.gradients["policy_logp"] == pytest.approx([-0.375, 0.125])


def test_the_prompts_own_scores_come_first(loss_of):
    inputs = {"policy_logp": [-2.0], "score": [1.0], "group_scores": [[1.0, 0.0, 0.5]]}
    assert loss_of(inputs, delta=0.0).loss == pytest.approx(1)
