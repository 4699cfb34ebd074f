import math
from types import SimpleNamespace

import pytest
import torch
from posttrain.contract.views import PerToken, View, Views
from posttrain.errors import SettingsError
from posttrain_testkit.by_hand import MASK, NEW, OLD, call_loss, method_beside, tensor

METHOD = method_beside(__file__)


def advantages(rewards, mask, log_ratio=None, **options):
    """``log_ratio`` of the sampling policy to the reference, (B, T)."""
    reference = torch.full(mask.shape, -1.0, dtype=torch.float64)
    old = reference if log_ratio is None else reference + log_ratio
    rollouts = SimpleNamespace(group=torch.arange(len(mask)), mask=mask, old_logps=old, reference_logps=reference)
    return METHOD.advantages(rewards=tensor(*rewards), rollouts=rollouts, config=METHOD.config(options), state={})


def loss_of(new, old, worth, mask, reference=None, **options):
    return call_loss(
        METHOD,
        Views(completion=View(new, mask, entropy=torch.ones_like(new))),
        None if reference is None else Views(completion=View(reference, mask)),
        {"advantages": worth, "old_logps": old},
        **{"beta": 0.0, **options},
    )


WORTH = tensor([3.0, 2.0], [-1.0, 0.0])


def test_returns_by_hand():
    """Token rewards -0.05, 0.1 + 1 and -0.2; returns 0.5, 1.1 and -0.2 of mean 0.466667, deviation 0.650641.

    The first return is -0.05 + 0.5 * 1.1. Squares 0.001111 + 0.401111 + 0.444444, halved, have the root 0.650641.
    The padding's log-ratio of 9 does not count.
    """
    found = advantages([1, 0], MASK, tensor([0.5, -1.0], [2.0, 9.0]), beta=0.1, gamma=0.5)
    assert found.flatten().tolist() == pytest.approx([0.051232, 0.973400, -1.024631, 0], abs=1e-6)


def test_mean_and_deviation_are_those_of_tokens():
    """Returns 1, 1 and 0: mean 2/3 (not 1/2, that of completions), variance (1/9 + 1/9 + 4/9) / 2 = 1/3."""
    found = advantages([1, 0], MASK)
    assert found.flatten().tolist() == pytest.approx([0.577350, 0.577350, -1.154701, 0], abs=1e-6)


def test_only_later_tokens_pay_for_a_divergence():
    """With gamma 1 a charge at the second token lowers the returns of both, one at the first only its own."""
    rewards, long = [1.0, 0.0], torch.tensor([[True, True], [True, True]])
    early = advantages(rewards, long, tensor([0.5, 0.0], [0.0, 0.0]), beta=1.0)
    late = advantages(rewards, long, tensor([0.0, 0.5], [0.0, 0.0]), beta=1.0)
    assert early[0, 0] < early[0, 1]
    assert late[0, 0] == late[0, 1]


@pytest.mark.parametrize("value", [0.1, -7.3])
def test_equal_rewards_teach_exactly_nothing(value):
    """G10: three equal rewards under a policy that is still the reference; a step of one token has no spread."""
    mask = torch.tensor([[True, True, True], [True, False, False], [True, True, False]])
    assert advantages([value] * 3, mask).flatten().tolist() == [0] * 9
    assert advantages([value], torch.tensor([[True]])).tolist() == [[0]]


def test_an_unscored_completion_leaves_the_others_alone():
    """G9: the tokens of the others are whitened as if its own were absent."""
    found = advantages([1, math.nan, 0], torch.tensor([[True, True], [True, True], [True, False]]))
    assert found[1].tolist() == [0, 0]
    assert found[[0, 2]].flatten().tolist() == pytest.approx(advantages([1, 0], MASK).flatten().tolist())


def test_no_reference_is_read_without_beta():
    rollouts = SimpleNamespace(mask=MASK)
    found = METHOD.advantages(rewards=tensor(1, 0), rollouts=rollouts, config=METHOD.config({"beta": 0}), state={})
    assert found[0, 0].item() == pytest.approx(0.577350, abs=1e-6)


def test_mean_over_all_tokens():
    """-3 * 1, -2 * 1.2 as 1.5 is clipped, and 0.8 as 1/2 is clipped; the core averages over the three tokens."""
    loss, metrics = loss_of(NEW, OLD, WORTH, MASK)
    assert isinstance(loss, PerToken)
    assert loss.mask is MASK
    assert loss.values[MASK].tolist() == pytest.approx([-3, -2.4, 0.8])
    assert metrics["clip_high"].values[MASK].tolist() == [0, 1, 0]
    assert metrics["clip_low"].values[MASK].tolist() == [0, 0, 1]
    assert metrics["ratio"].values[MASK].tolist() == pytest.approx([1, 1.5, 0.5])
    assert metrics["advantage_size"].values[MASK].tolist() == [3, 2, 1]


def test_one_advantage_a_completion_is_that_of_each_token():
    one, spread = (loss_of(NEW, OLD, worth, MASK)[0].values for worth in (tensor(2, -1), tensor(2, -1)[:, None]))
    assert torch.equal(one, spread)
    assert one[MASK].tolist() == pytest.approx([-2, -2.4, 0.8])


def test_the_divergence_is_in_the_reward_alone():
    """The loss is the same with beta; only the log-ratio of 0.5 is logged."""
    plain = loss_of(NEW, OLD, WORTH, MASK)[0].values
    loss, metrics = loss_of(NEW, OLD, WORTH, MASK, NEW - 0.5, beta=2.0)
    assert torch.equal(loss.values, plain)
    assert metrics["kl"].values[MASK].tolist() == pytest.approx([0.5] * 3)


def test_first_update_is_the_policy_gradient():
    """With old equal to new the gradient by each log-prob is its own -A."""
    new = OLD.clone().requires_grad_()
    loss_of(new, OLD, WORTH, MASK)[0].values[MASK].sum().backward()
    assert new.grad.tolist() == [[-3, -2], [1, 0]]


def test_gradient_equals_finite_differences():
    def total(new):
        return loss_of(new * MASK, OLD, WORTH, MASK)[0].values[MASK].sum()

    assert torch.autograd.gradcheck(total, (NEW.clone().requires_grad_(),))


def test_a_discount_above_one_is_refused():
    with pytest.raises(SettingsError, match=r"gamma is 1\.5, expected a number from 0 to 1"):
        METHOD.config({"gamma": 1.5})
