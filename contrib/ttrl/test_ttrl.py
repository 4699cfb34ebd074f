from types import SimpleNamespace

import pytest
import torch
from posttrain_testkit.by_hand import check_clipped_tokens, method_beside

METHOD = method_beside(__file__)


def worked_out(texts, group=None, **options):
    rollouts = SimpleNamespace(group=torch.tensor(group or [0] * len(texts)), completions=texts)
    config = METHOD.config(options)
    rewards = torch.zeros(len(texts), dtype=torch.float64)
    return METHOD.advantages(rewards=rewards, rollouts=rollouts, config=config, state={})


def test_the_majority_is_right():
    found = worked_out([r"so \boxed{4}", r"\boxed{5}", r"hm \boxed{3}, no: \boxed{4}"], advantage_epsilon=0.0)
    assert found["shaped_rewards"].tolist() == [1, 0, 1]
    assert found["majority"].tolist() == pytest.approx([2 / 3] * 3)
    assert found["advantages"].tolist() == pytest.approx([0.577350, -1.154701, 0.577350], abs=1e-5)


def test_of_equally_frequent_answers_the_first_in_the_alphabet_counts():
    assert worked_out(["7", "3", "7", "2", "2", "5"], [0, 0, 0, 1, 1, 1])["shaped_rewards"].tolist() == [
        1,
        0,
        1,
        1,
        1,
        0,
    ]
    assert worked_out(["b", "a"])["shaped_rewards"].tolist() == [0, 1]


def test_whole_completions_are_compared_without_a_pattern():
    found = worked_out([" yes", "yes\n", "no", "<answer> yes </answer>"])
    assert found["shaped_rewards"].tolist() == [1, 1, 0, 1]


def test_agreement_of_all_teaches_nothing():
    assert worked_out(["a", "a", "a"])["advantages"].tolist() == [0, 0, 0]


def test_clipped_policy_gradient_of_each_token(call_loss):
    check_clipped_tokens(call_loss, "shaped_rewards", "majority")
