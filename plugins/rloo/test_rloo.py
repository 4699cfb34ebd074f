import math
from types import SimpleNamespace

import pytest
import torch
from posttrain.contract.views import Batch, Step, View, Views
from posttrain_testkit.by_hand import MASK, method_beside, tensor

METHOD = method_beside(__file__)


def advantages(rewards, group, old=None, reference=None, mask=None, **options):
    rollouts = SimpleNamespace(group=torch.tensor(group), old_logps=old, reference_logps=reference, mask=mask)
    config = METHOD.config({"beta": 0.0, **options})
    return METHOD.advantages(rewards=tensor(*rewards), rollouts=rollouts, config=config, state={})


def loss_of(new, old, worth, mask, reference=None, **options):
    config = METHOD.config({"beta": 0.0, **options})
    return METHOD.loss(
        batch=Batch(len(new), {"advantages": worth, "old_logps": old}),
        policy=Views(completion=View(new, mask)),
        reference=None if reference is None else Views(completion=View(reference, mask)),
        config=config,
        step=Step(0, 1),
    )


OLD = tensor([-1.0, -2.0], [-3.0, 0.0])
NEW = OLD + tensor([1.25, 0.8], [1.5, 1.0]).log()
WORTH = tensor(2, 1)


def test_baseline_is_the_mean_of_the_others():
    """G21. {1, 2, 6}: 1 - 4, 2 - 3.5, 6 - 1.5. Groups may be interleaved: {0, 1} gives -1 and 1."""
    found = advantages([1, 0, 2, 6, 1], [5, 9, 5, 5, 9])
    assert found.tolist() == pytest.approx([-3, -1, -1.5, 4.5, 1])


def test_the_baseline_does_not_depend_on_the_own_reward():
    """What makes the estimator unbiased: raising one reward by 1 raises its own advantage by 1."""
    one, other = advantages([1, 2, 6], [0, 0, 0]), advantages([1, 3, 6], [0, 0, 0])
    assert (other - one)[1].item() == pytest.approx(1)
    assert (other - one)[0].item() == pytest.approx(-0.5)


def test_divergence_is_taken_from_the_reward():
    """Log-ratios 0.5 + 0.5 and -0.25 (the padding of 9 does not count), times 0.1: rewards 0.9 and 0.025."""
    old, reference = tensor([-1.0, -1.0], [-2.0, 9.0]), tensor([-1.5, -1.5], [-1.75, 0.0])
    found = advantages([1, 0], [0, 0], old, reference, MASK, beta=0.1)
    assert found.tolist() == pytest.approx([0.875, -0.875])


def test_equal_rewards_and_lone_completions_teach_nothing():
    """G10: 0.1 three times and a group of one are exactly 0."""
    for normalize in (False, True):
        found = advantages([0.1, 0.1, 0.1, 3.0], [0, 0, 0, 1], normalize_advantages=normalize)
        assert found.tolist() == [0, 0, 0, 0]


def test_an_unscored_completion_leaves_the_others_alone():
    """G9."""
    assert advantages([1, math.nan, 4], [0, 0, 0]).tolist() == [-3, 0, 3]


def test_whitening():
    """-3, -1.5, 4.5 have mean 0 and sample deviation sqrt((9 + 2.25 + 20.25) / 2) = 3.968627."""
    found = advantages([1, 2, 6], [0, 0, 0], normalize_advantages=True)
    assert found.tolist() == pytest.approx([-0.755909, -0.377955, 1.133864], abs=3e-5)


def test_ratio_of_the_whole_completion():
    """1.25 * 0.8 = 1: -2. A ratio of 1.5 is clipped to 1.2."""
    assert loss_of(NEW, OLD, WORTH, MASK)[0].tolist() == pytest.approx([-2, -1.2])


def test_ratio_of_each_token_is_summed():
    """-(min(1.25, 1.2) + 0.8) * 2 = -4 and -1.2."""
    assert loss_of(NEW, OLD, WORTH, MASK, importance_level="token")[0].tolist() == pytest.approx([-4, -1.2])


def test_plain_reinforce():
    """The paper's loss: -2 * (ln 1.25 - 1 + ln 0.8 - 2) = 6, and -(ln 1.5 - 3) = 2.594535."""
    loss, _ = loss_of(NEW, OLD, WORTH, MASK, importance_level="none")
    assert loss.tolist() == pytest.approx([6, 2.594535], abs=1e-6)


@pytest.mark.parametrize("level", ["sequence", "token", "none"])
def test_first_update_is_reinforce_at_every_level(level):
    """With old equal to new the gradient by each log-prob is -A."""
    new = OLD.clone().requires_grad_()
    loss_of(new, OLD, WORTH, MASK, importance_level=level)[0].sum().backward()
    assert new.grad[MASK].tolist() == pytest.approx([-2, -2, -1])


@pytest.mark.parametrize("level", ["sequence", "token", "none"])
def test_gradient_equals_finite_differences(level):
    worth = tensor(-2, 1)

    def total(new):
        return loss_of(new * MASK, OLD, worth, MASK, importance_level=level)[0].sum()

    point = NEW - 0.03  # away from 0.8, where the clip has a corner
    assert torch.autograd.gradcheck(total, (point.requires_grad_(),))


@pytest.mark.parametrize("level", ["sequence", "token", "none"])
def test_advantages_per_token(level):
    spread = WORTH[:, None].expand(2, 2)
    one, other = (loss_of(NEW, OLD, a, MASK, importance_level=level)[0].tolist() for a in (WORTH, spread))
    assert one == pytest.approx(other)


def test_long_completions_stay_finite():
    """A log-ratio of 2000 has no exponential; with an advantage of 0 it must not become a NaN."""
    new, mask = torch.full((2, 1000), -1.0), torch.ones(2, 1000, dtype=torch.bool)
    loss, _ = loss_of(new.requires_grad_(), torch.full((2, 1000), -3.0), torch.tensor([0.0, -1.0]), mask)
    loss.sum().backward()
    assert loss[0].item() == 0
    assert loss.isfinite().all()
    assert new.grad.isfinite().all()


def test_metrics_by_hand():
    _, metrics = loss_of(NEW, OLD, WORTH, MASK, NEW - 0.5, beta=0.05)
    assert metrics["ratio"].tolist() == pytest.approx([1, 1.5])
    assert metrics["clip_high"].tolist() == [0, 1]
    assert metrics["clip_low"].tolist() == [0, 0]
    assert metrics["kl"].tolist() == pytest.approx([1.0, 0.5])
    assert metrics["advantage_size"].tolist() == [2, 1]
    per_token = loss_of(NEW, OLD, WORTH, MASK, importance_level="token")[1]["clip_high"]
    assert per_token.values[per_token.mask].tolist() == [1, 0, 1]
