import math

import pytest
import torch
from posttrain.contract.views import View, Views
from posttrain_testkit.by_hand import call_loss, method_beside

METHOD = method_beside(__file__)


def loss_of(ratios, scores, **options):
    """The loss of one-token answers with these log-ratios."""
    values = torch.tensor(ratios, dtype=torch.float64)[:, None]  # (B, 1)
    mask = torch.ones_like(values, dtype=torch.bool)
    return call_loss(
        METHOD,
        Views(completion=View(values - 2, mask)),
        Views(completion=View(torch.full_like(values, -2), mask)),
        {"score": torch.tensor(scores)},
        **options,
    )


def test_by_hand():
    """With beta 0.03 a log-ratio of 100 ln(3) / 3 is a reward of ln 3: its sigmoid is 3/4, that of -ln 3 is 1/4."""
    ratio = 100 * math.log(3) / 3
    loss, metrics = loss_of([ratio, -ratio], [1.0, 0.5])
    assert loss.tolist() == pytest.approx([1 / 16, 1 / 16])
    assert metrics["reward"].tolist() == pytest.approx([math.log(3), -math.log(3)])


def test_the_reward_itself():
    """(0.8 - 0.1)^2 = 0.49 and (0.2 + 0.05)^2 = 0.0625: 0.27625 on average."""
    loss, metrics = loss_of([1.0, -0.5], [0.8, 0.2], distance="mse-reward", beta=0.1)
    assert loss.tolist() == pytest.approx([0.49, 0.0625])
    assert metrics["reward"].tolist() == pytest.approx([0.1, -0.05])
    assert metrics["logp"].tolist() == [-1, -2.5]


def test_scores_that_are_probabilities():
    """Cross-entropy of a coin of 0.8 and one of sigmoid(0.1)."""
    p = 1 / (1 + math.exp(-0.1))
    loss, _ = loss_of([1.0], [0.8], distance="bce", beta=0.1)
    assert loss.item() == pytest.approx(-0.8 * math.log(p) - 0.2 * math.log(1 - p))
