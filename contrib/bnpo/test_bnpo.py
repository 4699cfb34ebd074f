import math

import pytest
from posttrain_testkit.by_hand import MASK, NEW, OLD, WORTH


def test_advantages_by_hand(advantages_of):
    """Means 2/3 and 1/3: sample variance 1/18, k = 3.5, alpha and beta 1 + 1.75 / 3 = 19/12, both symmetric.

    The density at 2/3 is (2/9)^(7/12) Gamma(19/6) / Gamma(19/12)^2."""
    found, columns = advantages_of([1, 0, 1, 0, 0, 1], [0, 0, 0, 1, 1, 1])
    density = (2 / 9) ** (7 / 12) * math.gamma(19 / 6) / math.gamma(19 / 12) ** 2
    assert columns["alpha"].tolist() == pytest.approx([19 / 12] * 6)
    assert found.tolist() == pytest.approx([one / 3 / density for one in (1, -2, 1, -1, -1, 2)])


def test_without_a_spread_of_rates_nothing_is_divided(advantages_of):
    """One group, or two with the same mean: REINFORCE with a baseline."""
    assert advantages_of([1, 0], [0, 0])[0].tolist() == [0.5, -0.5]
    assert advantages_of([1, 0, 0, 1], [0, 0, 1, 1])[0].tolist() == [0.5, -0.5, -0.5, 0.5]
    assert advantages_of([0.1, 0.1, 0.9, 0.9], [0, 0, 1, 1])[0].tolist() == [0, 0, 0, 0]


def test_rewards_are_scaled_to_0_and_1(advantages_of):
    found, _ = advantages_of([3, -1, 3, -1, -1, 3], [0, 0, 0, 1, 1, 1], options={"min_reward": -1.0, "max_reward": 3.0})
    assert found.tolist() == pytest.approx(advantages_of([1, 0, 1, 0, 0, 1], [0, 0, 0, 1, 1, 1])[0].tolist())


def test_loss_by_hand(completion_loss):
    """Ratios 1 and 3/2 (held at 1.28), summed; or token by token."""
    columns = {"alpha": WORTH, "beta": WORTH}
    assert completion_loss(NEW, WORTH, MASK, OLD, **columns)[0].tolist() == pytest.approx([-4.56, 0.8])
    found, _ = completion_loss(NEW, WORTH, MASK, OLD, {"aggregation": "token"}, **columns)
    assert found.tolist() == pytest.approx([-2, -2.56, 0.8])
