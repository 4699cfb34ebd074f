from types import SimpleNamespace

import pytest
import torch
from posttrain import Rollout, SampleRequest
from posttrain.contract.generation import Completion
from posttrain_testkit.by_hand import MASK, OLD, tensor


def step_of(rewards, sources, groups, prompts):
    completion = Completion(torch.arange(2), torch.zeros(2), True, "a")
    items = [
        Rollout(group, torch.arange(2), completion, {"prompt": prompt}, reward, source=source)
        for group, prompt, reward, source in zip(groups, prompts, rewards, sources, strict=True)
    ]
    rollouts = SimpleNamespace(group=torch.tensor(groups), source=sources, prompts=prompts, items=items, columns={})
    return torch.tensor(rewards, dtype=torch.float64), rollouts


def test_value_by_hand(method):
    """beta1 1/2, rewards 1 and 0 of the reference: 1/2 ln((e^2 + 1) / 2) = 0.716890."""
    rewards, rollouts = step_of([1.0, 1.0, 0.0], ["policy", "reference", "reference"], [0, 0, 0], ["x"] * 3)
    found = method.advantages(rewards=rewards, rollouts=rollouts, config=method.config({}), state={})
    assert found["v_star"][0].item() == pytest.approx(0.716890, abs=1e-6)
    assert found["advantages"][0].item() == pytest.approx(0.283110, abs=1e-6)


def test_the_reference_answers_new_prompts_only_and_unsolved_ones_are_left_out(method):
    state, config = {}, method.config({"value_samples": 2})
    ask = {"prompts": [{"prompt": "x"}, {"prompt": "y"}], "group_size": 1, "config": config, "random": None}
    both = [SampleRequest(1), SampleRequest(2, source="reference")]
    assert method.plan_rollouts(state=state, **ask) == [both, both]
    sources = ["policy", "reference", "reference"] * 2
    rewards, rollouts = step_of([1.0, 1.0, 1.0, 0.0, 0.0, 0.0], sources, [0] * 3 + [1] * 3, ["x"] * 3 + ["y"] * 3)
    kept = method.select(rollouts=rollouts, rewards=rewards, config=config, state=state).rollouts
    assert [(item.columns["prompt"], item.source, item.columns["v_star"]) for item in kept] == [("x", "policy", 1.0)]
    assert method.plan_rollouts(state=state, **ask) == [[SampleRequest(1)], [SampleRequest(1)]]
    rewards, rollouts = step_of([0.0, 1.0], ["policy"] * 2, [0, 1], ["x", "y"])
    kept = method.select(rollouts=rollouts, rewards=rewards, config=config, state=state).rollouts
    assert [item.columns["v_star"] for item in kept] == [1.0]


def test_loss_by_hand(call_loss):
    """Log-ratios 1 and 0.5, beta2 2, advantages 0.5 and 1: (2 - 0.5)^2 and (1 - 1)^2."""
    reference = tensor([-2.0, -2.0], [-1.0, 0.0])
    columns = {"advantages": tensor(0.5, 1.0), "v_star": torch.zeros(2, dtype=torch.float64)}
    loss, metrics = call_loss(OLD, columns=columns, reference=reference, beta2=2.0, mask=MASK)
    assert loss.tolist() == pytest.approx([2.25, 0])
    assert metrics["kl"].tolist() == [1, 0.5]
