import pytest
from posttrain_testkit.by_hand import MASK, NEW, OLD, WORTH


def test_advantages_by_hand(advantages_of):
    """3 leads 1 by 2; of {3, 1, 1} the deviation is sqrt(4/3). A tie leads by nothing, and so does a lone answer."""
    found, _ = advantages_of([3, 1, 1, 2, 2, 5], [0, 0, 0, 1, 1, 2])
    assert found.tolist() == pytest.approx([3**0.5, 0, 0, 0, 0, 0], abs=1e-5)
    plain, _ = advantages_of([3, 1, 1, 2, 2, 5], [0, 0, 0, 1, 1, 2], options={"normalize": False})
    assert plain.tolist() == [2, 0, 0, 0, 0, 0]


def test_loss_is_averaged_over_a_completion(completion_loss):
    assert completion_loss(NEW, WORTH, MASK, OLD)[0].tolist() == pytest.approx([-2.2, 0.8])
