from types import SimpleNamespace

import pytest
import torch
from posttrain import Rollout
from posttrain.contract.generation import Completion
from posttrain_testkit.by_hand import check_clipped_tokens, method_beside, tensor

METHOD = method_beside(__file__)
D = torch.float64


def items_of(rewards):
    completion = Completion(torch.arange(2), torch.zeros(2), True, "a")
    return [Rollout(0, torch.arange(2), completion, {"prompt": "x"}, reward) for reward in rewards]


def drawn(rewards, state=None, **options):
    rollouts = SimpleNamespace(group=torch.zeros(len(rewards)), items=items_of(rewards))
    state = {} if state is None else state
    rewards, config = torch.tensor(rewards, dtype=D), METHOD.config(options)
    return METHOD.select(rollouts=rollouts, rewards=rewards, config=config, state=state).rollouts


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("pow", {3.0: 9 / 14, -2.0: 4 / 14, 1.0: 1 / 14, 0.0: 0}),
        ("max_min", {3.0: 1 / 2, -2.0: 1 / 2, 1.0: 0, 0.0: 0}),
        ("max_random", {3.0: 4 / 7, -2.0: 1 / 7, 1.0: 1 / 7, 0.0: 1 / 7}),
    ],
)
def test_probabilities_by_hand(how, expected):
    rollouts = SimpleNamespace(group=torch.zeros(4), columns={})
    rewards = tensor(3.0, -2.0, 1.0, 0.0)
    config = METHOD.config({"filter": how})
    found = METHOD.advantages(rewards=rewards, rollouts=rollouts, config=config, state={})
    assert found["probability"].tolist() == pytest.approx(list(expected.values()), abs=1e-7)


def test_what_is_drawn_keeps_what_it_was_worth():
    """Rewards 1 and 0: only 1 is drawn, twice, and still is worth half of a deviation of sqrt(1/2)."""
    found = drawn([1.0, 0.0], advantage_epsilon=0.0)
    assert [item.reward for item in found] == [1, 1]
    columns = {"drawn": [item.columns["drawn"] for item in found]}
    rollouts = SimpleNamespace(group=torch.zeros(2), columns=columns)
    worth = METHOD.advantages(rewards=torch.ones(2, dtype=D), rollouts=rollouts, config=METHOD.config({}), state={})
    assert worth["advantages"].tolist() == pytest.approx([0.707107] * 2, abs=1e-6)
    assert worth["distinct"].tolist() == [0.5, 0.5]


def test_frequencies_follow_the_probabilities():
    state, count = {}, 0
    for _ in range(300):
        count += sum(item.reward == 2 for item in drawn([2.0, 1.0, 1.0], state))
    assert count / 900 == pytest.approx(4 / 6, abs=0.05)


def test_draws_repeat_after_a_resume():
    state = {}
    drawn([2.0, 1.0, 1.5], state)
    saved = dict(state)
    assert [i.reward for i in drawn([2.0, 1.0, 1.5], state)] == [i.reward for i in drawn([2.0, 1.0, 1.5], saved)]


def test_clipped_policy_gradient_of_each_token(call_loss):
    check_clipped_tokens(call_loss, "probability", "distinct")
