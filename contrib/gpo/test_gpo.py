import math

import pytest
from posttrain_testkit.by_hand import POLICY, REFERENCE


@pytest.mark.parametrize(
    ("convex", "function"),
    [
        ("logistic", lambda z: math.log(1 + math.exp(-z))),
        ("hinge", lambda z: max(0, 1 - z)),
        ("squared", lambda z: (1 - z) * (1 - z)),
        ("exponential", lambda z: 1 / math.exp(z)),
        ("truncated_quadratic", lambda z: max(0, 1 - z) ** 2),
        ("savage", lambda z: (1 + math.exp(z)) ** -2),
    ],
)
def test_by_hand(call_loss, convex, function):
    """At margins 0.15 and -0.075, and at 1.5 and -0.75 with beta 1."""
    assert call_loss(POLICY, REFERENCE, convex=convex)[0].tolist() == pytest.approx([function(0.15), function(-0.075)])
    assert call_loss(POLICY, REFERENCE, convex=convex, beta=1.0)[0].tolist() == pytest.approx(
        [function(1.5), function(-0.75)]
    )
