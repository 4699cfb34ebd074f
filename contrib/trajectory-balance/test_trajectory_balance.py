import pytest


def test_by_hand(loss_of):
    """Log-ratios 2 and 0, scores 1 and 0, beta 1: u = -1 and 0, mean -0.5: 0.25. Pulled towards each other."""
    inputs = {"policy_logp": [-1.0, -4.0], "ref_logp": [-3.0, -4.0], "scores": [1.0, 0.0]}
    found = loss_of(inputs, beta=1.0)
    assert found.loss == pytest.approx(0.25)
    assert found.gradients["policy_logp"] == pytest.approx([0.5, -0.5])


def test_a_constant_in_the_scores_changes_nothing_and_the_optimum_costs_nothing(loss_of):
    inputs = {"policy_logp": [-1.0, -4.0, -2.0], "ref_logp": [-3.0, -4.0, -2.5], "scores": [1.0, 0.4, 0.2]}
    moved = inputs | {"scores": [11.0, 10.4, 10.2]}
    assert loss_of(moved).loss == pytest.approx(loss_of(inputs).loss)
    best = {"policy_logp": [-1.0, -2.0], "ref_logp": [-3.0, -2.0], "scores": [1.0, 0.0]}
    assert loss_of(best, beta=0.5).loss == pytest.approx(0)
