import math

import pytest
import torch
from posttrain_testkit.by_hand import MASK, NEW, OLD, WORTH, examples_of, tensor


def test_the_largest_covariances_are_selected(method):
    """Advantages 2, 2, -2 with the mean 2/3; log-probs -1, -3, -4 with the mean -8/3: 20/9, -4/9 and 32/9."""
    examples, models = examples_of([[-1.0, -3.0], [-4.0]], [[-1.0, -3.0], [-4.0]], [2.0, -2.0], [0, 0])
    found = method.annotate(examples=examples, models=models, config=method.config({}), state={})
    assert torch.cat(found["covariance"]).tolist() == pytest.approx([20 / 9, -4 / 9, 32 / 9])
    assert [row.tolist() for row in found["held_back"]] == [[0, 0], [1]]
    config = method.config({"kl_cov_ratio": 0.7})
    found = method.annotate(examples=examples, models=models, config=config, state={})
    assert [row.tolist() for row in found["held_back"]] == [[1, 0], [1]]


def test_loss_by_hand(completion_loss):
    """Ratios 1, 3/2, 1/2 without a clip; the second and third also pay ln 1.5 and ln 2."""
    columns = {"held_back": tensor([0.0, 1.0], [1.0, 0.0]), "covariance": OLD}
    loss, _ = completion_loss(NEW, WORTH, MASK, OLD, **columns)
    assert loss.tolist() == pytest.approx([-2, -3 + math.log(1.5), 0.5 + math.log(2)])


def test_advantages_by_hand(advantages_of):
    """Of {1, 0, 1}: mean 2/3, sample deviation 0.577350. Equal rewards are worth nothing, also a lone one's."""
    found, _ = advantages_of([1, 0, 1, 0.1, 0.1, 5], [0, 0, 0, 1, 1, 2])
    assert found.tolist() == pytest.approx([0.577349, -1.154699, 0.577349, 0, 0, 0], abs=1e-6)
