"""Expert iteration against numbers worked by hand and the golden values."""

from pathlib import Path
from types import SimpleNamespace

import torch
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


def chosen(rewards, group, texts, **options):
    rollouts = SimpleNamespace(group=torch.tensor(group), completions=texts, items=list(range(len(rewards))))
    rewards = torch.tensor(rewards, dtype=D)
    return METHOD.select(rollouts=rollouts, rewards=rewards, config=METHOD.config(options), state={}).rollouts


def test_right_answers_are_kept_once_and_up_to_the_cap():
    texts = ["a", "b", "a", "c", "d", "a"]
    rewards, group = [1.0, 0.4, 1.0, 1.0, 1.0, 1.0], [0, 0, 0, 0, 0, 1]
    assert chosen(rewards, group, texts) == [0, 3, 4, 5]
    assert chosen(rewards, group, texts, deduplicate=False) == [0, 2, 3, 4, 5]
    assert chosen(rewards, group, texts, max_per_prompt=1) == [0, 5]
    assert chosen(rewards, group, texts, threshold=0.4 - 1e-9) == [0, 1, 3, 4, 5]


def test_without_right_answers_nothing_is_learnt():
    assert chosen([0.0, 0.0], [0, 0], ["a", "b"]) is None
    rewards, config = torch.zeros(2, dtype=D), METHOD.config({})
    worth = METHOD.advantages(rewards=rewards, rollouts=None, config=config, state={})
    loss, _ = loss_of(torch.tensor([[-1.0, -2.0], [-0.5, 0.0]], dtype=D), {"advantages": worth})
    assert loss.values[MASK].abs().max() == 0


def test_loss_is_the_negative_log_probability():
    new = torch.tensor([[-1.0, -2.0], [-0.5, 0.0]], dtype=D)
    loss, _ = loss_of(new, {"advantages": torch.ones(2, dtype=D)})
    assert loss.values[MASK].tolist() == [1, 2, 0.5]


def test_goldens():
    (result,) = evaluate(GOLDENS, "expert-iteration", [str(HERE)])
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "advantages", "grad_logp_new"]
