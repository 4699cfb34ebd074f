"""The replay buffer against numbers worked by hand: what is kept, what is drawn, also in a resumed run."""

import copy
import math
import shutil
from types import SimpleNamespace

import pytest
import torch
from posttrain import Rollout, api
from posttrain.contract.generation import Completion
from posttrain.contract.rollout import Rollouts
from posttrain.contract.views import View, Views
from posttrain.errors import SettingsError
from posttrain_testkit.by_hand import MASK, NEW, OLD, call_loss, method_beside, tensor
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer

METHOD = method_beside(__file__)


def step(groups, text="new"):
    """Rollouts with the rewards of each group, in order; every log-prob is -0.25."""
    items = []
    for group, rewards in enumerate(groups):
        for reward in rewards:
            completion = Completion(torch.tensor([5, 6]), torch.full((2,), -0.25), True, text)
            items.append(Rollout(group, torch.tensor([4]), completion, {"prompt": f"{text} {group}"}, reward))
    return items


def select(state, groups, text="new", **options):
    items = step(groups, text)
    rollouts = Rollouts(items, lambda *_: [])
    rewards = tensor(*(item.reward for item in items))
    config = METHOD.config(options)
    return METHOD.select(rollouts=rollouts, rewards=rewards, config=config, state=state).rollouts


def scores(state):
    return [entry["score"] for entry in state["buffer"]]


def test_scores_by_hand():
    """{1, 0}: deviation 0.707107, advantages +-0.707107, score 1.414214 * 0.707107 = 1. {4, 0} has four times the
    deviation and the same advantages: 4. {1, 1, 0}: deviation 0.577350, |A| 0.577350 + 0.577350 + 1.154701: 1.333333.
    """
    state = {}
    select(state, [[1, 0], [4, 0], [0.1, 0.1, 0.1], [1, 1, 0]], advantage_epsilon=0.0)
    assert scores(state) == pytest.approx([4, 4 / 3, 1])


def test_the_best_groups_stay():
    state = {}
    select(state, [[1, 0], [4, 0]], "old", buffer_size=2, advantage_epsilon=0.0)
    select(state, [[2, 0], [0.5, 0]], "new", buffer_size=2, advantage_epsilon=0.0)
    assert scores(state) == pytest.approx([4, 2])
    assert [entry["rollouts"][0]["columns"]["prompt"] for entry in state["buffer"]] == ["old 1", "new 0"]


def test_nothing_is_replaced_before_there_is_something():
    """G10: groups without a spread stay with advantages of exactly 0; those of the same step replace nothing."""
    chosen = select({}, [[1, 0], [0.1, 0.1, 0.1]])
    assert [item.source for item in chosen] == ["policy"] * 5


def test_each_dull_group_gives_its_place_to_one_of_the_buffer():
    state = {}
    select(state, [[1, 0], [4, 0]], "old")
    chosen = select(state, [[0, 0], [1, 0], [1, 1]])
    assert [(item.group, item.source, item.completion.text) for item in chosen[:2]] == [(1, "policy", "new")] * 2
    replayed = chosen[2:]
    assert {item.source for item in replayed} == {"replay"}
    assert [item.group for item in replayed] == [0, 0, 2, 2]
    assert {item.columns["prompt"] for item in replayed} == {"old 0", "old 1"}  # drawn without replacement
    assert all(item.old_logps.tolist() == [-0.25, -0.25] for item in replayed)
    assert sorted(item.reward for item in replayed) == [0, 0, 1, 4]


def test_a_buffer_that_is_too_small_leaves_the_rest():
    state = {}
    select(state, [[1, 0]], "old")
    chosen = select(state, [[0, 0], [1, 1], [2, 2]])
    assert [item.source for item in chosen] == ["policy"] * 4 + ["replay"] * 2
    assert [item.group for item in chosen] == [1, 1, 2, 2, 0, 0]


def test_draws_are_in_proportion_to_the_score():
    """Scores 1 and 4: the second is drawn in four of five cases, 160 of 200 with a deviation of 5.7."""
    state = {}
    select(state, [[1, 0], [4, 0]], "old")
    drawn = [select(state, [[0, 0]])[0].columns["prompt"] for _ in range(200)]
    assert 140 <= drawn.count("old 1") <= 180


def test_the_same_state_draws_the_same():
    state = {}
    select(state, [[1, 0], [2, 0], [3, 0], [4, 0]], "old")
    again = copy.deepcopy(state)
    for _ in range(5):
        first, second = select(state, [[0, 0]]), select(again, [[0, 0]])
        assert first[0].columns["prompt"] == second[0].columns["prompt"]


def loss_of(new, reference=None, **options):
    columns = {"advantages": tensor(2, -1), "old_logps": OLD, "replayed": tensor(0, 1), "buffer_score": tensor(3, 3)}
    return call_loss(
        METHOD,
        Views(completion=View(new, MASK, entropy=torch.ones_like(new))),
        None if reference is None else Views(completion=View(reference, MASK)),
        columns,
        **options,
    )


def test_mean_over_tokens_then_completions():
    """Good: -(2 * 1 + 2 * 1.2) / 2 = -2.2, the 1.5 is clipped. Bad: ratio 0.5 is clipped to 0.8."""
    loss, metrics = loss_of(NEW)
    assert loss.tolist() == pytest.approx([-2.2, 0.8])
    assert metrics["replayed"].tolist() == [0, 1]


def test_divergence_by_hand():
    """A reference twice as likely on each token: k3 = 2 - 1 - ln 2 = 0.306853, half of it added."""
    loss, metrics = loss_of(NEW, NEW + math.log(2), beta=0.5)
    assert loss.tolist() == pytest.approx([-2.2 + 0.153426, 0.8 + 0.153426], abs=1e-6)
    assert metrics["kl"].values[MASK].tolist() == pytest.approx([0.306853] * 3, abs=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_gradient_equals_finite_differences(beta):
    def total(new):
        return loss_of(new * MASK, OLD - 0.2, beta=beta)[0].sum()

    assert torch.autograd.gradcheck(total, (NEW.clone().requires_grad_(),))


def test_advantages_are_those_of_grpo():
    """Of {1, 0, 1}: mean 2/3, sample deviation 0.577350; an unscored one counts for nothing (G9)."""
    rollouts = SimpleNamespace(group=torch.tensor([0, 0, 0, 0]), source=["policy", "replay", "policy", "policy"])
    config = METHOD.config({"advantage_epsilon": 0.0})
    found = METHOD.advantages(rewards=tensor(1, 0, math.nan, 1), rollouts=rollouts, config=config, state={})
    assert found["advantages"].tolist() == pytest.approx([0.577350, -1.154701, 0, 0.577350], abs=1e-6)
    assert found["replayed"].tolist() == [0, 1, 0, 0]


def test_an_empty_buffer_is_refused():
    with pytest.raises(SettingsError, match="buffer_size is 0, expected a number of groups from 1"):
        METHOD.config({"buffer_size": 0})


def half_dull(prompts, completions, dull):
    """No signal on the dull prompts; on the others every second completion is right."""
    return [1.0 if flat else float(place % 2) for place, flat in enumerate(dull)]


def test_a_resumed_run_replays_the_same(tmp_path):
    """G19: buffer and draws are in the checkpoint. Replayed completions are learnt from with their own old log-probs,
    so their ratio leaves 1 already in the first update."""
    rows = [{"prompt": letter * 2, "dull": place % 2 == 0} for place, letter in enumerate("abcdefab")]
    keywords = {"output": str(tmp_path / "run"), "batch_size": 4, "group_size": 2, "steps": 6, "max_new_tokens": 4}
    keywords |= {"learning_rate": 1e-2, "save_every": 3, "progress": "quiet", "cache": "off", "device": "cpu"}
    run = api.train(
        METHOD, model=tiny_model(), tokenizer=tiny_tokenizer(), data=rows, reward=half_dull, shuffle=False, **keywords
    )
    assert [line["replayed"] for line in run.metrics] == [0] + [0.5] * 5
    assert run.metrics[0]["ratio"] == 1
    assert abs(run.metrics[-1]["ratio"] - 1) > 1e-3
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-6")
    objects = {"model": tiny_model(), "tokenizer": tiny_tokenizer(), "data": rows, "reward": half_dull}
    again = api.resume(tmp_path / "run", **objects)
    names = ("loss", "grad_norm", "ratio", "buffer_score", "entropy")
    assert [[line[name] for name in names] for line in again.metrics] == [
        [line[name] for name in names] for line in run.metrics
    ]
