import pytest
from posttrain.errors import SettingsError
from posttrain_testkit.by_hand import MASK, NEW, OLD, WORTH


def test_advantages_by_hand(advantages_of):
    """Of 0, 0, 0, 0, 1 the second smallest is 0: only the success teaches. Of 0, 1, 1, 1, 1: 1, the failure."""
    rare, _ = advantages_of([0, 0, 1, 0, 0], [0] * 5)
    usual, _ = advantages_of([1, 1, 0, 1, 1], [0] * 5)
    deviation = (4 * 0.04 + 0.64) ** 0.5 / 2
    assert rare.tolist() == pytest.approx([0, 0, 1 / deviation, 0, 0], abs=1e-5)
    assert usual.tolist() == pytest.approx([0, 0, -1 / deviation, 0, 0], abs=1e-5)


def test_a_quantile_of_nothing_is_refused(method):
    with pytest.raises(SettingsError, match=r"quantile is 0\.0, expected a number above 0 and up to 1"):
        method.config({"quantile": 0.0})


def test_loss_is_clipped_and_averaged_over_tokens(completion_loss):
    """Ratios 1, 3/2 and 1/2 under advantages 2 and -1: -2, -2 * 1.28 and 0.8."""
    assert completion_loss(NEW, WORTH, MASK, OLD, baseline=WORTH)[0].tolist() == pytest.approx([-2, -2.56, 0.8])
