import math
from types import SimpleNamespace

import pytest
import torch
from posttrain_testkit.by_hand import check_clipped_tokens, method_beside

METHOD = method_beside(__file__)
D = torch.float64


def worked_out(rewards, texts, **options):
    rollouts = SimpleNamespace(group=torch.zeros(len(rewards)), completions=texts)
    config = METHOD.config(options)
    return METHOD.advantages(rewards=torch.tensor(rewards, dtype=D), rollouts=rollouts, config=config, state={})


def say(number):
    return f"The answer is 4. <confidence>{number}</confidence>"


def test_being_right_about_being_right():
    """Right with 0.9 and 0.5: 1 - 0.01, 1 - 0.25; wrong with 0.9 and 0.1: -0.81, -0.01."""
    found = worked_out([1.0, 1.0, 0.0, 0.0], [say(0.9), say(0.5), say(0.9), say(0.1)])
    assert found["shaped_rewards"].tolist() == pytest.approx([0.99, 0.75, -0.81, -0.01])
    assert found["advantages"].argsort(descending=True).tolist() == [0, 1, 3, 2]


@pytest.mark.parametrize("text", ["no tags", say("very"), say("1.5"), say("-0.1"), say("nan"), "<confidence>0.5"])
def test_what_cannot_be_read_is_the_worst(text):
    found = worked_out([1.0, 0.0], [text, text])
    assert found["shaped_rewards"].tolist() == [0, -1]
    assert found["readable"].tolist() == [0, 0]


def test_the_last_one_counts():
    assert worked_out([1.0], [say(0.1) + " no: " + say(" 1 ")])["confidence"].tolist() == [1]


def test_honesty_pays_best():
    """Right 7 times of 10: the expected reward 0.7 (1 - (1 - q)^2) - 0.3 q^2 is largest at q = 0.7."""
    means = [sum(worked_out([1.0] * 7 + [0.0] * 3, [say(q / 10)] * 10)["shaped_rewards"]).item() for q in range(11)]
    assert max(range(11), key=means.__getitem__) == 7


def test_a_completion_without_a_reward_teaches_nothing():
    """G9."""
    found = worked_out([1.0, math.nan, 0.0], [say(0.5)] * 3, advantage_epsilon=0.0)["advantages"].tolist()
    assert found == pytest.approx([0.707107, 0, -0.707107], abs=1e-6)


def test_a_pattern_without_a_group_is_refused():
    from posttrain.errors import SettingsError

    with pytest.raises(SettingsError, match="expected one group in parentheses"):
        METHOD.config({"confidence_pattern": "sure"})


def test_clipped_policy_gradient_of_each_token(call_loss):
    check_clipped_tokens(call_loss, "shaped_rewards", "confidence", "brier", "readable")
