import math

import pytest


def test_by_hand(loss_of):
    """Scores 1 and 0 with beta1 1: V* = ln((e + 1) / 2) = 0.620115. rho = 2, beta2 = 0.5: (1 - 0.379885)^2."""
    inputs = {"policy_logp": [-1.0], "ref_logp": [-3.0], "score": [1.0], "group_scores": [[1.0, 0.0]]}
    found = loss_of(inputs, beta1=1.0, beta2=0.5)
    residual = 1 - (1 - math.log((math.e + 1) / 2))
    assert found.loss == pytest.approx(residual**2)
    assert found.gradients["policy_logp"] == pytest.approx([residual])


def test_a_small_beta1_is_the_best_of_the_group(loss_of):
    inputs = {"policy_logp": [-1.0], "ref_logp": [-1.0], "score": [0.0], "group_scores": [[1.0, 0.0]]}
    assert loss_of(inputs, beta1=1e-4).metrics["optimal_value"].item() == pytest.approx(1, abs=1e-4)
