import math

import pytest
from posttrain.errors import SettingsError
from posttrain_testkit.by_hand import MASK, NEW, OLD, WORTH, tensor


def test_advantages_by_hand(advantages_of):
    """Of {1, 0, 1}: population deviation 0.471405; 1/3 of 0.481405 is 0.692418. Equal rewards are worth nothing."""
    found, _ = advantages_of([1, 0, 1, 0.1, 0.1, 5], [0, 0, 0, 1, 1, 2])
    assert found.tolist() == pytest.approx([0.692418, -1.384837, 0.692418, 0, 0, 0], abs=1e-6)


def test_loss_by_hand(completion_loss):
    """Ratios to the reference 1, 3/2 (clipped at 1.2) and 1/2 (clipped at 0.8), without the divergence."""
    loss, _ = completion_loss(NEW, WORTH, MASK, None, {"beta": 0.0}, OLD)
    assert loss.tolist() == pytest.approx([-2, -2.4, 0.8])
    k3 = [0.0, 2 / 3 - 1 + math.log(1.5), 2 - 1 - math.log(2)]
    loss, _ = completion_loss(NEW, WORTH, MASK, None, {"beta": 1.0}, OLD)
    assert loss.tolist() == pytest.approx([-2 + k3[0], -2.4 + k3[1], 0.8 + k3[2]])


def test_beyond_the_band_there_is_no_gradient(completion_loss):
    """A bad token at a log-ratio of 2 costs e^1.5, one at 1 costs e and has a gradient."""
    new = (OLD + tensor([0.0, 0.0], [2.0, 0.0])).requires_grad_()
    loss, metrics = completion_loss(new, WORTH, MASK, None, {"beta": 0.0}, OLD)
    loss[2].backward()
    assert (loss[2].item(), new.grad[1, 0].item()) == (pytest.approx(math.exp(1.5)), 0)
    assert metrics["held"].values[MASK].tolist() == [0, 0, 1]
    new = (OLD + tensor([0.0, 0.0], [1.0, 0.0])).requires_grad_()
    completion_loss(new, WORTH, MASK, None, {"beta": 0.0}, OLD)[0][2].backward()
    assert new.grad[1, 0].item() == pytest.approx(math.e)


def test_a_band_without_1_is_refused(method):
    with pytest.raises(SettingsError, match=r"log_epsilon_low is 0\.1 and log_epsilon_high 1\.5, expected one below"):
        method.config({"log_epsilon_low": 0.1})
