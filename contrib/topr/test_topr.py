import math

import pytest
from posttrain_testkit.by_hand import MASK, tensor

NEW = tensor([-1.0, -2.0], [-1.5, 0.0])


def test_bad_ones_are_tapered(call_loss):
    """Ratios e^-1 and e^0.5 of a good and a bad completion: 1 and 1. The other way round: 1 and e^-1."""
    up, down = NEW.clone(), NEW.clone()
    old = tensor([-1.0, -1.0], [-2.0, 0.0])
    columns = {"old_logps": old, "advantages": tensor(1.0, -1.0)}
    assert call_loss(up, columns=columns, mask=MASK)[0].tolist() == pytest.approx([3, -1.5])
    columns = {"old_logps": old, "advantages": tensor(-1.0, 1.0)}
    loss, metrics = call_loss(down, columns=columns, mask=MASK)
    assert loss.tolist() == pytest.approx([-3 * math.exp(-1), 1.5])
    assert metrics["weight"][0].item() == pytest.approx(math.exp(-1))
    assert metrics["weight"][1].isnan()


def test_the_weight_has_no_gradient(call_loss):
    new = NEW.clone().requires_grad_()
    columns = {"old_logps": NEW + MASK * 0.5, "advantages": tensor(-1.0, -1.0)}
    call_loss(new, columns=columns, mask=MASK)[0].sum().backward()
    assert new.grad[MASK].tolist() == pytest.approx([math.exp(-1)] * 2 + [math.exp(-0.5)])


def test_rewards_become_signs(method):
    rewards, config = tensor(1.0, 0.0, 0.3, math.nan), method.config({})
    assert method.advantages(rewards=rewards, rollouts=None, config=config, state={}).tolist() == [1, -1, 1, 0]


def test_bounds_that_make_no_sense_are_refused(method):
    from posttrain.errors import SettingsError

    with pytest.raises(SettingsError, match=r"negative_taper is .* expected a lower and an upper bound"):
        method.config({"negative_taper": [1.0, 0.5]})
