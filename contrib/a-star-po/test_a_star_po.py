"""A*-PO against numbers worked by hand and the golden values."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from posttrain import Ask, Rollout
from posttrain.generation.protocol import Completion
from posttrain.methods import load
from posttrain.views import Batch, Step, View, Views
from posttrain_testkit.goldens.compare import evaluate

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "online.json"
METHOD = load(str(HERE))
D = torch.float64

MASK = torch.tensor([[True, True], [True, False]])


def loss_of(new, columns, reference=None, **options):
    view = View(new, MASK, entropy=torch.ones_like(new))
    return METHOD.loss(
        batch=Batch(len(new), columns),
        policy=Views(completion=view),
        reference=None if reference is None else Views(completion=View(reference, MASK)),
        config=METHOD.config(options),
        step=Step(0, 1),
    )


def step_of(rewards, sources, groups, prompts):
    completion = Completion(torch.arange(2), torch.zeros(2), True, "a")
    items = [
        Rollout(group, torch.arange(2), completion, {"prompt": prompt}, reward, source=source)
        for group, prompt, reward, source in zip(groups, prompts, rewards, sources, strict=True)
    ]
    rollouts = SimpleNamespace(group=torch.tensor(groups), source=sources, prompts=prompts, items=items, columns={})
    return torch.tensor(rewards, dtype=D), rollouts


def test_value_by_hand():
    """beta1 1/2, rewards 1 and 0 of the reference: 1/2 ln((e^2 + 1) / 2) = 0.716890."""
    rewards, rollouts = step_of([1.0, 1.0, 0.0], ["policy", "reference", "reference"], [0, 0, 0], ["x"] * 3)
    found = METHOD.advantages(rewards=rewards, rollouts=rollouts, config=METHOD.config({}), state={})
    assert found["v_star"][0].item() == pytest.approx(0.716890, abs=1e-6)
    assert found["advantages"][0].item() == pytest.approx(0.283110, abs=1e-6)


def test_the_reference_answers_new_prompts_only_and_unsolved_ones_are_left_out():
    state, config = {}, METHOD.config({"value_samples": 2})
    ask = {"prompts": [{"prompt": "x"}, {"prompt": "y"}], "group_size": 1, "config": config, "random": None}
    both = [Ask(1), Ask(2, source="reference")]
    assert METHOD.plan_rollouts(state=state, **ask) == [both, both]
    sources = ["policy", "reference", "reference"] * 2
    rewards, rollouts = step_of([1.0, 1.0, 1.0, 0.0, 0.0, 0.0], sources, [0] * 3 + [1] * 3, ["x"] * 3 + ["y"] * 3)
    kept = METHOD.select(rollouts=rollouts, rewards=rewards, config=config, state=state).rollouts
    assert [(item.columns["prompt"], item.source, item.columns["v_star"]) for item in kept] == [("x", "policy", 1.0)]
    assert METHOD.plan_rollouts(state=state, **ask) == [[Ask(1)], [Ask(1)]]
    rewards, rollouts = step_of([0.0, 1.0], ["policy"] * 2, [0, 1], ["x", "y"])
    kept = METHOD.select(rollouts=rollouts, rewards=rewards, config=config, state=state).rollouts
    assert [item.columns["v_star"] for item in kept] == [1.0]


def test_loss_by_hand():
    """Log-ratios 1 and 0.5, beta2 2, advantages 0.5 and 1: (2 - 0.5)^2 and (1 - 1)^2."""
    new = torch.tensor([[-1.0, -2.0], [-0.5, 0.0]], dtype=D)
    reference = torch.tensor([[-2.0, -2.0], [-1.0, 0.0]], dtype=D)
    columns = {"advantages": torch.tensor([0.5, 1.0], dtype=D), "v_star": torch.zeros(2, dtype=D)}
    loss, metrics = loss_of(new, columns, reference, beta2=2.0)
    assert loss.tolist() == pytest.approx([2.25, 0])
    assert metrics["kl"].tolist() == [1, 0.5]


def test_goldens():
    (result,) = evaluate(GOLDENS, "a-star-po", [str(HERE)])
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "advantages", "grad_logp_new"]
