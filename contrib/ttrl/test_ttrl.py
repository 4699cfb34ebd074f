"""TTRL against numbers worked by hand and the golden values."""

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


def test_clipped_policy_gradient_of_each_token():
    """A = 2 with ratios 1 and 3/2: -2 and -2.4, as 1.5 is clipped to 1.2. A = -1 with 1/2: clipped to 0.8."""
    mask = torch.tensor([[True, True], [True, False]])
    old = torch.tensor([[-1.0, -2.0], [-0.5, 0.0]], dtype=D)
    new = old + torch.tensor([[1.0, 1.5], [0.5, 1.0]], dtype=D).log()
    columns = {
        "advantages": torch.tensor([2.0, -1.0], dtype=D),
        "old_logps": old,
        "shaped_rewards": torch.zeros(2, dtype=D),
        "majority": torch.zeros(2, dtype=D),
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
    (result,) = evaluate(GOLDENS, "ttrl", [str(HERE)])
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "advantages", "shaped_rewards", "grad_logp_new"]
