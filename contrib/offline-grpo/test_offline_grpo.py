import math

import pytest


def test_by_hand(loss_of):
    """Scores 3 and 1: mean 2, deviation 1, advantages 1 and -1. Ratios 1.5 (clipped at 1.2) and 1."""
    inputs = {
        "policy_tok": [[-1.0], [-2.0]],
        "ref_tok": [[-1.0 - math.log(1.5)], [-2.0]],
        "score": [3.0, 1.0],
    }
    found = loss_of(inputs, beta=0.0, floor=0.0)
    assert found.loss == pytest.approx((-1.2 + 1) / 2)
    assert found.gradients["policy_tok"] == [[0.0], [pytest.approx(0.5)]]
    assert found.metrics["clipped"].values.flatten().tolist() == [1, 0]


def test_the_prompts_own_scores_come_first(loss_of):
    """A constant added to all scores of a group changes nothing."""

    def of(shift):
        groups = {"group_scores": [[2.0 + shift, 0.0 + shift]]}
        return loss_of({"policy_tok": [[-1.0]], "ref_tok": [[-1.5]], "score": [2.0 + shift]} | groups).loss

    assert of(0.0) == pytest.approx(of(5.0))
