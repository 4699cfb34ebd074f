import math

import pytest
from posttrain.errors import SettingsError
from posttrain_testkit.by_hand import MASK, NEW, OLD, WORTH


def test_loss_by_hand(completion_loss):
    """As PPO within delta; a bad token at a ratio of 5 costs 4. A reference twice as likely adds beta (1 - ln 2)."""
    assert completion_loss(NEW, WORTH, MASK, OLD, {"beta": 0.0})[0].tolist() == pytest.approx([-2.2, 0.8])
    assert completion_loss(OLD + math.log(5), WORTH, MASK, OLD, {"beta": 0.0})[0][1].item() == pytest.approx(4)
    loss, _ = completion_loss(NEW, WORTH, MASK, OLD, {"beta": 0.5}, NEW + math.log(2))
    assert loss.tolist() == pytest.approx([-2.2 + 0.153426, 0.8 + 0.153426], abs=1e-6)


def test_a_bound_within_the_clip_is_refused(method):
    with pytest.raises(SettingsError, match=r"delta is 1\.1, expected a number above 1 \+ epsilon"):
        method.config({"delta": 1.1})


def test_advantages_by_hand(advantages_of):
    """Of {1, 0, 1}: mean 2/3, sample deviation 0.577350. Equal rewards are worth nothing, also a lone one's."""
    found, _ = advantages_of([1, 0, 1, 0.1, 0.1, 5], [0, 0, 0, 1, 1, 2])
    assert found.tolist() == pytest.approx([0.577349, -1.154699, 0.577349, 0, 0, 0], abs=1e-6)
