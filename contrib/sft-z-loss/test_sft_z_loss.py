import math

import pytest


def test_by_hand(loss_of):
    """Logits (ln 3, 0): log Z = ln 4, the token -ln(3/4). The penalty's slope is 2 c log Z p."""
    found = loss_of({"logits": [[math.log(3.0), 0.0]], "labels": [0]}, z_weight=0.5)
    assert found.loss == pytest.approx(-math.log(0.75) + 0.5 * math.log(4) ** 2)
    slope = math.log(4)
    assert found.gradients["logits"][0][0] == pytest.approx([-0.25 + 0.75 * slope, 0.25 + 0.25 * slope])
