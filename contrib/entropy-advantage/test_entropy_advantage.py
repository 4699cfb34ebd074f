import pytest
from posttrain.errors import SettingsError
from posttrain_testkit.by_hand import MASK, NEW, OLD, WORTH, tensor


def test_advantages_by_hand(advantages_of):
    """Advantages +-0.707106, their half 0.353553: 0.4 * 0.5 = 0.2 is added as it is, 0.4 * 2 is cut to the half."""
    entropy = tensor([0.5, 2.0], [0.5, 2.0])
    found, columns = advantages_of([1, 0], [0, 0], old=lambda name: entropy)
    assert found.flatten().tolist() == pytest.approx([0.907106, 1.060660, -0.507106, -0.353553], abs=1e-5)
    assert columns["bonus"].flatten().tolist() == pytest.approx([0.2, 0.353553] * 2, abs=1e-5)
    assert advantages_of([0.1, 0.1], [0, 0], old=lambda name: entropy)[0].tolist() == [[0, 0], [0, 0]]


def test_a_bonus_that_could_turn_the_sign_is_refused(method):
    with pytest.raises(SettingsError, match=r"kappa is 1\.0, expected a number above 1"):
        method.config({"kappa": 1.0})


def test_loss_is_clipped_and_averaged_over_tokens(completion_loss):
    """Ratios 1, 3/2 and 1/2 under advantages 2 and -1: -2, -2 * 1.28 and 0.8."""
    assert completion_loss(NEW, WORTH, MASK, OLD, bonus=OLD)[0].tolist() == pytest.approx([-2, -2.56, 0.8])
