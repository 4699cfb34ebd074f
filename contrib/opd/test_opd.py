import math
from types import SimpleNamespace

import pytest
import torch
from posttrain.contract.views import Batch, PerToken, Step, View, Views
from posttrain.errors import SettingsError
from posttrain_testkit.by_hand import method_beside, tensor

METHOD = method_beside(__file__)

MASK = torch.tensor([[True, True, True], [True, False, False]])
OLD = tensor([-1.0, -2.0, -0.5], [-0.5, 0.0, 0.0])
#: Gaps q - o of 1, -0.5, 2 and of -0.25.
TEACHER = OLD + tensor([1.0, -0.5, 2.0], [-0.25, 7.0, 7.0])


def advantages(rewards=(0.0, 0.0), group=(0, 0), **options):
    rollouts = SimpleNamespace(
        mask=MASK, group=torch.tensor(group), old_logps=OLD, teacher_logps=TEACHER, sampled_logps=OLD - 9
    )
    rewards = torch.tensor(rewards, dtype=torch.float64)
    return METHOD.advantages(rewards=rewards, rollouts=rollouts, config=METHOD.config(options), state={})


def loss_of(new, worth, **options):
    view = View(new, MASK, entropy=torch.ones_like(new))
    batch = Batch(2, {"advantages": worth, "old_logps": OLD, "teacher_logps": TEACHER})
    return METHOD.loss(
        batch=batch, policy=Views(completion=view), reference=None, config=METHOD.config(options), step=Step(0, 1)
    )


def test_a_token_is_worth_what_the_teacher_finds_it_likelier():
    assert advantages()[MASK].tolist() == pytest.approx([1, -0.5, 2, -0.25])
    assert advantages(kl_coef=0.5)[MASK].tolist() == pytest.approx([0.5, -0.25, 1, -0.125])
    assert advantages()[~MASK].tolist() == [0, 0]


def test_later_tokens_count_with_a_discount():
    """From the end: 2, then -0.5 + 2/2 = 0.5, then 1 + 0.5/2 = 1.25; what lies behind the end never counts."""
    assert advantages(kl_discount=0.5)[MASK].tolist() == pytest.approx([1.25, 0.5, 2, -0.25])
    assert advantages(kl_discount=1.0)[MASK].tolist() == pytest.approx([2.5, 1.5, 2, -0.25])


def test_the_task_is_added_when_it_has_a_weight():
    """Rewards 1 and 0 of one group lie 0.5 above and below their mean; weighted by 2 that is 1 a token."""
    assert advantages((1.0, 0.0)).tolist() == advantages().tolist()
    assert advantages((1.0, 0.0), task_weight=2.0)[MASK].tolist() == pytest.approx([2, 0.5, 3, -1.25])
    alone = advantages((1.0, math.nan), task_weight=2.0)
    assert alone.tolist() == advantages().tolist()  # G9: nothing to compare with, so the teacher's word alone


def test_loss_is_weighted_by_the_ratio():
    """A ratio of 2 on the first token: -2 * 1; of 1 elsewhere. Clipped at 1.2 it is -1.2."""
    new = OLD.clone()
    new[0, 0] += math.log(2)
    loss, metrics = loss_of(new, advantages())
    assert isinstance(loss, PerToken)
    assert loss.mask is MASK
    assert loss.values[MASK].tolist() == pytest.approx([-2, 0.5, -2, 0.25])
    assert loss_of(new, advantages(), epsilon=0.2)[0].values[MASK].tolist() == pytest.approx([-1.2, 0.5, -2, 0.25])
    assert metrics["reverse_kl"].values[MASK].tolist() == pytest.approx([math.log(2) - 1, 0.5, -2, 0.25])
    assert metrics["advantage_size"].values[MASK].tolist() == pytest.approx([1, 0.5, 2, 0.25])


def test_first_gradient_is_minus_the_advantage():
    new = OLD.clone().requires_grad_()
    loss_of(new, advantages())[0].values[MASK].sum().backward()
    assert new.grad[MASK].tolist() == pytest.approx([-1, 0.5, -2, 0.25])


def test_its_mean_gradient_is_that_of_the_divergence():
    """G1: three tokens with probabilities s against p; the mean over s of the gradient by the logits is that of
    KL(s || p), which autograd takes from the sum itself."""
    logits = torch.tensor([0.3, -0.4, 1.1], dtype=torch.float64, requires_grad=True)
    target = tensor(0.5, 0.2, 0.3).log()
    logps = logits.log_softmax(-1)
    expected = torch.autograd.grad((logps.exp() * (logps - target)).sum(), logits, retain_graph=True)[0]
    mask = torch.ones(3, 1, dtype=torch.bool)
    config = METHOD.config({})
    old = logps.detach()[:, None]  # each token sampled once
    rollouts = SimpleNamespace(mask=mask, group=torch.zeros(3), old_logps=old, teacher_logps=target[:, None])
    worth = METHOD.advantages(rewards=torch.zeros(3, dtype=torch.float64), rollouts=rollouts, config=config, state={})
    view = View(logps[:, None], mask, entropy=old)
    batch = Batch(3, {"advantages": worth, "old_logps": old, "teacher_logps": target[:, None]})
    loss, _ = METHOD.loss(batch=batch, policy=Views(completion=view), reference=None, config=config, step=Step(0, 1))
    (found,) = torch.autograd.grad((loss.values[:, 0] * logps.detach().exp()).sum(), logits)
    assert found.tolist() == pytest.approx(expected.tolist())


@pytest.mark.parametrize("epsilon", [None, 0.3])
def test_gradient_equals_finite_differences(epsilon):
    worth = advantages(kl_discount=0.7)

    def total(new):
        return loss_of(new * MASK, worth, epsilon=epsilon)[0].values[MASK].sum()

    start = OLD + 0.1 * tensor([1.0, -2.0, 3.0], [0.5, 0.0, 0.0])
    assert torch.autograd.gradcheck(total, (start.requires_grad_(),))


def test_a_discount_above_one_is_refused():
    with pytest.raises(SettingsError, match=r"kl_discount is 1\.5, expected a number from 0 to 1"):
        METHOD.config({"kl_discount": 1.5})
