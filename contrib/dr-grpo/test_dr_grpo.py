import math
from types import SimpleNamespace

import pytest
import torch
from posttrain.contract.views import View, Views
from posttrain.errors import SettingsError
from posttrain.settings import Settings
from posttrain_testkit.by_hand import MASK, NEW, OLD, WORTH, call_loss, method_beside, tensor

METHOD = method_beside(__file__)


def advantages(rewards, group):
    rollouts = SimpleNamespace(group=torch.tensor(group))
    return METHOD.advantages(rewards=tensor(*rewards), rollouts=rollouts, config=METHOD.config({}), state={}).tolist()


def loss_of(new, old, worth, mask, reference=None, **options):
    return call_loss(
        METHOD,
        Views(completion=View(new, mask, entropy=torch.ones_like(new))),
        None if reference is None else Views(completion=View(reference, mask)),
        {"advantages": worth, "old_logps": old},
        **{"constant_length": 4, **options},
    )


def test_advantages_are_not_divided_by_a_deviation():
    """Of {1, 0, 1} the mean is 2/3; ten times the rewards are worth ten times as much. Groups may be interleaved."""
    found = advantages([1, 0, 10, 0, 1, 10], [3, 3, 8, 8, 3, 8])
    assert found == pytest.approx([1 / 3, -2 / 3, 10 / 3, -20 / 3, 1 / 3, 10 / 3])


def test_equal_rewards_and_lone_completions_are_worth_exactly_nothing():
    """G10: 0.1 three times sums to more than 0.3; a group of one beside it."""
    assert advantages([0.1, 0.1, 0.1, 5.0], [0, 0, 0, 1]) == [0, 0, 0, 0]


def test_an_unscored_completion_leaves_the_others_alone():
    """G9: {1, 0} have the mean 1/2."""
    assert advantages([1.0, math.nan, 0.0], [0, 0, 0]) == [0.5, 0, -0.5]


def test_sum_over_tokens_by_a_constant():
    """Good: -(2 * 1 + 2 * 1.2) / 4 = -1.1, the 1.5 is clipped. Bad: ratio 0.5 is clipped to 0.8, 0.8 / 4 = 0.2."""
    loss, metrics = loss_of(NEW, OLD, WORTH, MASK)
    assert loss.tolist() == pytest.approx([-1.1, 0.2])
    assert metrics["ratio"].values[MASK].tolist() == pytest.approx([1, 1.5, 0.5])
    assert metrics["clip_high"].values[MASK].tolist() == [0, 1, 0]
    assert metrics["clip_low"].values[MASK].tolist() == [0, 0, 1]
    assert metrics["advantage_size"].tolist() == [2, 1]
    assert metrics["zero_advantage"].tolist() == [0, 0]


def test_a_token_weighs_the_same_in_short_and_in_long_completions():
    """G3: at ratio 1 every token's gradient is -A / 4, whatever the length of its completion."""
    new = OLD.clone().requires_grad_()
    loss_of(new, OLD, tensor(-2, -2), MASK)[0].sum().backward()
    assert new.grad.tolist() == [[0.5, 0.5], [0.5, 0]]


def test_divergence_by_hand():
    """A reference twice as likely on each token: k3 = 2 - 1 - ln 2 = 0.306853; times 0.5 / 4 is 0.038357 a token."""
    loss, metrics = loss_of(NEW, OLD, WORTH, MASK, NEW + math.log(2), beta=0.5)
    assert loss.tolist() == pytest.approx([-1.1 + 0.076713, 0.2 + 0.038357], abs=1e-6)
    assert metrics["kl"].values[MASK].tolist() == pytest.approx([0.306853] * 3, abs=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_gradient_equals_finite_differences(beta):
    def total(new):
        return loss_of(new * MASK, OLD, WORTH, MASK, OLD - 0.2, beta=beta)[0].sum()

    assert torch.autograd.gradcheck(total, (NEW.clone().requires_grad_(),))


def test_a_fully_masked_completion_costs_nothing():
    """M11: a truncated completion that is not learnt from adds 0, and the divisor of the other stays."""
    loss, _ = loss_of(NEW, OLD, WORTH, torch.tensor([[True, True], [False, False]]))
    assert loss.tolist() == pytest.approx([-1.1, 0])


def test_the_length_is_that_of_the_longest_completion_where_none_is_given():
    assert METHOD.config({}, Settings(max_new_tokens=77)).constant_length == 77


def test_a_length_of_zero_is_refused():
    with pytest.raises(SettingsError, match="constant_length is 0, expected a number of tokens from 1"):
        METHOD.config({"constant_length": 0})
