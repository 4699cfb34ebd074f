"""EMPO against numbers worked by hand and the golden values."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from posttrain.methods import load
from posttrain.views import Batch, Step, View, Views
from posttrain_testkit.goldens.compare import evaluate

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "online.json"
METHOD = load(str(HERE))
D = torch.float64


def worked_out(texts, group=None, **options):
    rollouts = SimpleNamespace(group=torch.tensor(group or [0] * len(texts)), completions=texts)
    config = METHOD.config(options)
    rewards = torch.zeros(len(texts), dtype=D)
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


def test_clipped_policy_gradient_of_each_token():
    """A = 2 with ratios 1 and 3/2: -2 and -2.4, as 1.5 is clipped to 1.2. A = -1 with 1/2: clipped to 0.8."""
    mask = torch.tensor([[True, True], [True, False]])
    old = torch.tensor([[-1.0, -2.0], [-0.5, 0.0]], dtype=D)
    new = old + torch.tensor([[1.0, 1.5], [0.5, 1.0]], dtype=D).log()
    columns = {
        "advantages": torch.tensor([2.0, -1.0], dtype=D),
        "old_logps": old,
        "shaped_rewards": torch.zeros(2, dtype=D),
        "semantic_entropy": torch.zeros(2, dtype=D),
    }
    loss, metrics = METHOD.loss(
        batch=Batch(2, columns),
        policy=Views(completion=View(new, mask, entropy=torch.ones_like(new))),
        reference=None,
        config=METHOD.config({}),
        step=Step(0, 1),
    )
    assert loss.mask is mask
    assert loss.values[mask].tolist() == pytest.approx([-2, -2.4, 0.8])
    assert metrics["clip_high"].values[mask].tolist() == [0, 1, 0]
    assert metrics["clip_low"].values[mask].tolist() == [0, 0, 1]


def test_goldens():
    (result,) = evaluate(GOLDENS, "empo", [str(HERE)])
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "advantages", "shaped_rewards", "grad_logp_new"]
