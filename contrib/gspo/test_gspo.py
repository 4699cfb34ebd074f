import math
from types import SimpleNamespace

import pytest
import torch
from posttrain.contract.views import View, Views
from posttrain_testkit.by_hand import MASK, OLD, WORTH, call_loss, method_beside, tensor

METHOD = method_beside(__file__)


def advantages(rewards, group, **options):
    rollouts = SimpleNamespace(group=torch.tensor(group))
    config = METHOD.config(options)
    return METHOD.advantages(rewards=tensor(*rewards), rollouts=rollouts, config=config, state={}).tolist()


def loss_of(new, old, worth, mask, reference=None, **options):
    return call_loss(
        METHOD,
        Views(completion=View(new, mask, entropy=torch.ones_like(new))),
        None if reference is None else Views(completion=View(reference, mask)),
        {"advantages": worth, "old_logps": old},
        **options,
    )


NEW = OLD + tensor([0.001, -0.0004], [-0.001, 0.0])


def test_advantages_by_hand():
    """Of {1, 0, 1}: mean 2/3, sample deviation sqrt((1/9 + 4/9 + 1/9) / 2) = 0.577350; 1/3 of it is 0.577350."""
    found = advantages([1, 0, 0, 1, 0, 1], [3, 3, 8, 3, 8, 8], advantage_epsilon=0.0)
    assert found == pytest.approx([0.577350, -1.154701, -0.577350, 0.577350, -0.577350, 1.154701], abs=1e-6)


@pytest.mark.parametrize("epsilon", [1e-4, 1e-12])
def test_equal_rewards_and_lone_completions_are_worth_exactly_nothing(epsilon):
    """G10: 0.1 three times and a group of one, beside a group with a signal."""
    found = advantages([0.1, 0.1, 0.1, 5.0, 0.0, 1.0], [0, 0, 0, 1, 2, 2], advantage_epsilon=epsilon)
    assert found[:4] == [0, 0, 0, 0]
    assert found[4] == -found[5] != 0


def test_an_unscored_completion_leaves_the_others_alone():
    """G9."""
    with_gap = advantages([1.0, math.nan, 0.0, 1.0], [0, 0, 0, 0])
    assert with_gap[1] == 0
    assert [with_gap[0], *with_gap[2:]] == pytest.approx(advantages([1.0, 0.0, 1.0], [0, 0, 0]))


def test_ratio_of_the_whole_completion():
    """exp(0.0003) = 1.00030005 lies below 1.0004: -2.0006001. exp(-0.001) = 0.9990005 is clipped to 0.9997."""
    loss, metrics = loss_of(NEW, OLD, WORTH, MASK)
    assert loss.tolist() == pytest.approx([-2.0006001, 0.9997], abs=1e-7)
    assert metrics["ratio"].tolist() == pytest.approx([1.00030005, 0.9990005], abs=1e-8)
    assert metrics["clip_low"].tolist() == [0, 1]
    assert metrics["clip_high"].tolist() == [0, 0]
    assert metrics["advantage_size"].tolist() == [2, 1]
    assert metrics["zero_advantage"].tolist() == [0, 0]


def test_a_completion_is_clipped_as_a_whole():
    """A mean log-ratio of 0.0005 exceeds 0.0004: the loss is -2 * 1.0004 and no token of it has a gradient."""
    new = (OLD + tensor([0.002, -0.001], [0.0, 0.0])).requires_grad_()
    loss, metrics = loss_of(new, OLD, WORTH, MASK)
    loss.sum().backward()
    assert loss[0].item() == pytest.approx(-2.0008)
    assert new.grad.tolist() == [[0, 0], [1, 0]]
    assert metrics["clip_high"].tolist() == [1, 0]


def test_first_update_is_the_policy_gradient():
    """With old equal to new the gradient by each log-prob is -A / length: -2/2 twice, and +1."""
    new = OLD.clone().requires_grad_()
    loss_of(new, OLD, WORTH, MASK)[0].sum().backward()
    assert new.grad.tolist() == [[-1, -1], [1, 0]]


def test_divergence_beside_a_sequence_ratio():
    """G2: token by token in plain Python; a ratio of one a row must not be spread over the wrong rows."""
    mask = torch.tensor([[True, True, True], [True, False, False], [True, True, False]])
    random = torch.Generator().manual_seed(1)
    new, old, reference = (torch.randn(3, 3, generator=random, dtype=torch.float64) * 0.3 * mask for _ in range(3))
    worth, lengths = tensor(1.5, -0.7, 0.4), [3, 1, 2]
    expected = []
    for i, length in enumerate(lengths):
        ratio = math.exp(sum(float(new[i, t] - old[i, t]) for t in range(length)) / length)
        a = float(worth[i])
        surrogate = min(ratio * a, min(max(ratio, 1 - 3e-4), 1 + 4e-4) * a)
        logs = [float(reference[i, t] - new[i, t]) for t in range(length)]
        expected.append(-surrogate + 0.1 * sum(math.exp(x) - x - 1 for x in logs) / length)
    loss, metrics = loss_of(new, old, worth, mask, reference, beta=0.1)
    assert loss.tolist() == pytest.approx(expected)
    assert metrics["kl"].values.shape == (3, 3)


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_gradient_equals_finite_differences(beta):
    def total(new):
        return loss_of(new * MASK, OLD, WORTH, MASK, OLD - 0.2, beta=beta)[0].sum()

    assert torch.autograd.gradcheck(total, (NEW.clone().requires_grad_(),))


def test_a_fully_masked_completion_teaches_nothing():
    """M11: without trained tokens the ratio is the constant 1, so no log-prob has a gradient."""
    new = NEW.clone().requires_grad_()
    loss_of(new, OLD, WORTH, torch.tensor([[True, True], [False, False]]))[0].sum().backward()
    assert new.grad[1].tolist() == [0, 0]
