import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from posttrain.contract.views import Batch, PerToken, Step, View, Views
from posttrain.errors import SettingsError
from posttrain.settings import Settings
from posttrain_testkit.by_hand import MASK, NEW, OLD, WORTH, method_beside, tensor

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "online.json"
METHOD = method_beside(__file__)


def advantages(rewards, group, **options):
    rollouts = SimpleNamespace(group=torch.tensor(group))
    config = METHOD.config(options)
    return METHOD.advantages(rewards=tensor(*rewards), rollouts=rollouts, config=config, state={}).tolist()


def loss_of(new, old, worth, mask, reference=None, **options):
    policy = Views(completion=View(new, mask, entropy=torch.ones_like(new)))
    given = None if reference is None else Views(completion=View(reference, mask))
    config = METHOD.config({"beta": 0.0, **options})
    batch = Batch(len(new), {"advantages": worth, "old_logps": old})
    return METHOD.loss(batch=batch, policy=policy, reference=given, config=config, step=Step(0, 1))


def test_advantages_by_hand():
    """Of {1, 0, 1}: mean 2/3, sample deviation sqrt((1/9 + 4/9 + 1/9) / 2) = 0.577350; 1/3 of it is 0.577350."""
    found = advantages([1, 0, 0, 1, 0, 1], [3, 3, 8, 3, 8, 8], advantage_epsilon=0.0)
    assert found == pytest.approx([0.577350, -1.154701, -0.577350, 0.577350, -0.577350, 1.154701], abs=1e-6)


def test_scaling_by_the_step_and_none():
    """Three ones and three zeros: deviation sqrt(6 * 0.25 / 5) = 0.547723, and 1/3 of that is 0.608581."""
    rewards, group = [1, 0, 1, 0, 0, 1], [0, 0, 0, 1, 1, 1]
    by_step = advantages(rewards, group, scale_rewards="batch", advantage_epsilon=0.0)
    assert by_step[:2] == pytest.approx([0.608581, -1.217161], abs=1e-6)
    assert advantages(rewards, group, scale_rewards="none")[:2] == pytest.approx([1 / 3, -2 / 3])


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("epsilon", [1e-4, 1e-12])
def test_equal_rewards_are_worth_exactly_nothing(scale, epsilon):
    """G10: 0.1 three times, a group of one, beside a group with a signal."""
    found = advantages(
        [0.1, 0.1, 0.1, 5.0, 0.0, 1.0], [0, 0, 0, 1, 2, 2], scale_rewards=scale, advantage_epsilon=epsilon
    )
    assert found[:4] == [0, 0, 0, 0]
    assert found[4] == -found[5] != 0


def test_an_unscored_completion_leaves_the_others_alone():
    """G9: as if its row were absent, and it teaches nothing itself."""
    with_gap = advantages([1.0, math.nan, 0.0, 1.0], [0, 0, 0, 0])
    without = advantages([1.0, 0.0, 1.0], [0, 0, 0])
    assert with_gap[1] == 0
    assert [with_gap[0], *with_gap[2:]] == pytest.approx(without)


def test_mean_over_tokens_then_completions():
    """Good: -(2 * 1 + 2 * 1.2) / 2 = -2.2, the 1.5 is clipped. Bad: ratio 0.5 is clipped to 0.8."""
    loss, _ = loss_of(NEW, OLD, WORTH, MASK)
    assert loss.tolist() == pytest.approx([-2.2, 0.8])


def test_the_other_aggregations():
    """G3. Per token, and the sums -4.4 and 0.8 divided by a length of 4."""
    loss, _ = loss_of(NEW, OLD, WORTH, MASK, aggregation="token")
    assert isinstance(loss, PerToken)
    assert loss.values[MASK].tolist() == pytest.approx([-2, -2.4, 0.8])
    loss, _ = loss_of(NEW, OLD, WORTH, MASK, aggregation="constant", constant_length=4)
    assert loss.tolist() == pytest.approx([-1.1, 0.2])


def test_sequence_level_uses_the_geometric_mean():
    """sqrt(1 * 1.5) = 1.224745, clipped to 1.2: -2.4. With a bound of 0.3 it stands: -2.449490."""
    loss, _ = loss_of(NEW, OLD, WORTH, MASK, importance_level="sequence")
    assert loss.tolist() == pytest.approx([-2.4, 0.8])
    loss, _ = loss_of(NEW, OLD, WORTH, MASK, importance_level="sequence", epsilon_high=0.3)
    assert loss[0].item() == pytest.approx(-2.449490, abs=1e-6)


def test_asymmetric_clip_and_cap():
    """DAPO's upper bound 0.28 lets 1.28 through. A bad token at ratio 5 costs 5, or 4 under a cap of 4."""
    assert loss_of(NEW, OLD, WORTH, MASK, epsilon_high=0.28)[0][0].item() == pytest.approx(-(2 + 2.56) / 2)
    far = OLD + math.log(5)
    assert loss_of(far, OLD, WORTH, MASK)[0][1].item() == pytest.approx(5)
    assert loss_of(far, OLD, WORTH, MASK, delta=4.0)[0][1].item() == pytest.approx(4)


def test_divergence_by_hand():
    """A reference twice as likely on each token: k3 = 2 - 1 - ln 2 = 0.306853, weighted by 0.5."""
    loss, metrics = loss_of(NEW, OLD, WORTH, MASK, NEW + math.log(2), beta=0.5)
    assert loss.tolist() == pytest.approx([-2.2 + 0.153426, 0.8 + 0.153426], abs=1e-6)
    assert metrics["kl"].values[MASK].tolist() == pytest.approx([0.306853] * 3, abs=1e-6)


@pytest.mark.parametrize("aggregation", ["sequence", "token", "constant"])
def test_divergence_beside_a_sequence_ratio(aggregation):
    """G2: token by token in plain Python; a ratio of shape (B, 1) must not be spread over the wrong rows."""
    mask = torch.tensor([[True, True, True], [True, False, False], [True, True, False]])
    random = torch.Generator().manual_seed(1)
    new, old, reference = (torch.randn(3, 3, generator=random, dtype=torch.float64) * 0.3 * mask for _ in range(3))
    worth, lengths = tensor(1.5, -0.7, 0.4), [3, 1, 2]
    rows = []
    for i, length in enumerate(lengths):
        ratio = math.exp(sum(float(new[i, t] - old[i, t]) for t in range(length)) / length)
        a = float(worth[i])
        policy = -min(ratio * a, min(max(ratio, 0.8), 1.2) * a)
        logs = [float(reference[i, t] - new[i, t]) for t in range(length)]
        rows.append([policy + 0.1 * (math.exp(x) - x - 1) for x in logs])
    options = {"aggregation": aggregation, "importance_level": "sequence", "constant_length": 5}
    loss, _ = loss_of(new, old, worth, mask, reference, beta=0.1, **options)
    expected = {
        "sequence": [sum(row) / len(row) for row in rows],
        "token": [value for row in rows for value in row],
        "constant": [sum(row) / 5 for row in rows],
    }[aggregation]
    found = loss.values[loss.mask] if isinstance(loss, PerToken) else loss
    assert found.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("aggregation", ["sequence", "token", "constant"])
def test_gradient_equals_finite_differences(level, aggregation):
    options = {"importance_level": level, "aggregation": aggregation, "constant_length": 4, "beta": 0.3}

    def total(new):
        loss, _ = loss_of(new * MASK, OLD, WORTH, MASK, OLD - 0.2, **options)
        return loss.values[MASK].sum() if isinstance(loss, PerToken) else loss.sum()

    assert torch.autograd.gradcheck(total, (NEW.clone().requires_grad_(),))


def test_first_update_is_the_policy_gradient():
    """With old equal to new the gradient by each log-prob is -A / length: -2/2 twice, and +1."""
    new = OLD.clone().requires_grad_()
    loss_of(new, OLD, WORTH, MASK)[0].sum().backward()
    assert new.grad.tolist() == [[-1, -1], [1, 0]]


def test_advantages_per_token_are_taken_as_they_are():
    spread = WORTH[:, None].expand(2, 2)
    for level in ("token", "sequence"):
        one, other = (loss_of(NEW, OLD, a, MASK, importance_level=level)[0].tolist() for a in (WORTH, spread))
        assert one == pytest.approx(other)
    loss, _ = loss_of(OLD, OLD, tensor([1.0, 3.0], [5.0, 99.0]), MASK)
    assert loss.tolist() == pytest.approx([-2, -5])


def test_metrics_by_hand():
    _, metrics = loss_of(NEW, OLD, tensor(2, 0), MASK)
    assert metrics["ratio"].values[MASK].tolist() == pytest.approx([1, 1.5, 0.5])
    assert metrics["clip_high"].values[MASK].tolist() == [0, 1, 0]
    assert metrics["clip_low"].values[MASK].tolist() == [0, 0, 0]
    assert metrics["advantage_size"].tolist() == [2, 0]
    assert metrics["zero_advantage"].tolist() == [0, 1]
    assert loss_of(NEW, OLD, WORTH, MASK)[1]["clip_low"].values[MASK].tolist() == [0, 0, 1]


def test_a_fully_masked_completion_costs_nothing():
    """M11: truncated completions that are not learnt from."""
    for options in ({}, {"aggregation": "constant", "constant_length": 4}, {"importance_level": "sequence"}):
        loss, _ = loss_of(NEW, OLD, WORTH, torch.tensor([[True, True], [False, False]]), **options)
        assert loss[1].item() == 0


def test_the_constant_length_is_that_of_the_longest_completion():
    """Where it is not given: that of the run, 256 by default."""
    settings = Settings(max_new_tokens=77)
    assert METHOD.config({"aggregation": "constant"}, settings).constant_length == 77
    assert METHOD.config({"constant_length": 5}, settings).constant_length == 5
    assert METHOD.config({}).constant_length == 256
    with pytest.raises(SettingsError, match="constant_length is 0, expected a number of tokens from 1"):
        METHOD.config({"constant_length": 0})


@pytest.mark.parametrize(
    ("entry", "options"),
    [
        ("dr-grpo", {"aggregation": "constant", "constant_length": 4, "scale_rewards": "none"}),
        ("dapo", {"aggregation": "token", "epsilon_high": 0.28}),
        ("gspo", {"importance_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4}),
        ("two-sided-clip", {"delta": 3.0}),
        ("dual-clip", {"delta": 3.0}),
    ],
)
def test_options_give_the_losses_of_successors(entry, options):
    """Loss, advantages and gradient of entries that have names of their own."""
    entries = json.loads(GOLDENS.read_text())
    golden, shared = entries[entry], entries["_shared"]["policy_gradient"]
    mask = torch.arange(3)[None] < torch.tensor(shared["lengths"])[:, None]
    new, old = (
        torch.tensor([row + [0.0] * (3 - len(row)) for row in shared[name]], dtype=torch.float64)
        for name in ("logp_new", "logp_old")
    )
    options = {"beta": 0.0, "advantage_epsilon": 1e-6, **options}
    worth = advantages(shared["rewards"], shared["group"], **options)
    assert worth == pytest.approx(golden["advantages"], abs=2e-6)
    new.requires_grad_()
    loss, _ = loss_of(new, old, tensor(*worth), mask, **options)
    loss = loss.values[mask].mean() if isinstance(loss, PerToken) else loss.mean()
    loss.backward()
    assert loss.item() == pytest.approx(golden["loss"], abs=2e-6)
    flat = [value for row in golden["grad_logp_new"] for value in row]
    assert new.grad[mask].tolist() == pytest.approx(flat, abs=2e-6)
