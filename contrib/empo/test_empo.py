import math
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


def test_shares_and_entropy_by_hand():
    """Clusters of 2 and 1 of 3: shares 2/3 and 1/3, entropy 2/3 ln 3/2 + 1/3 ln 3."""
    found = worked_out(["a", "b", "a"], advantage_epsilon=0.0)
    assert found["shaped_rewards"].tolist() == pytest.approx([2 / 3, 1 / 3, 2 / 3])
    entropy = 2 / 3 * math.log(1.5) + 1 / 3 * math.log(3)
    assert found["semantic_entropy"].tolist() == pytest.approx([entropy] * 3)
    assert found["advantages"].tolist() == pytest.approx([0.577350, -1.154701, 0.577350], abs=1e-5)


def test_prompts_outside_the_bounds_teach_nothing():
    """The entropy of {2, 1} is 0.636514."""
    texts = ["a", "b", "a"]
    for low, high, taught in ((0.0, 0.7, True), (0.64, None, False), (0.0, 0.63, False)):
        found = worked_out(texts, entropy_low=low, entropy_high=high)["advantages"]
        assert bool(found.abs().max() > 0) is taught


def test_agreement_and_utter_disagreement_teach_nothing():
    assert worked_out(["a", "a"])["advantages"].tolist() == [0, 0]
    assert worked_out(["a", "b"])["advantages"].tolist() == [0, 0]


def test_clipped_policy_gradient_of_each_token(call_loss):
    check_clipped_tokens(call_loss, "shaped_rewards", "semantic_entropy")
