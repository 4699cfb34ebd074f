import math
from functools import partial

import pytest
import torch
from posttrain.contract.views import Batch, Step, View, Views
from posttrain_testkit.by_hand import MASK, NEW, OLD, WORTH, advantages_of, method_beside

METHOD = method_beside(__file__)
advantages = partial(advantages_of, METHOD)


def controlled(entropy, state, **options):
    """The weight for a batch of this entropy."""
    rows = torch.full((2, 2), entropy, dtype=torch.float64)
    _, columns = advantages([1, 0], [0, 0], options=options, state=state, old=lambda name: rows)
    return columns["entropy_weight"].tolist()[0]


def test_the_weight_follows_the_entropy():
    """At or below the target it counts and grows; above it rests and shrinks, never below 0."""
    state = {}
    found = [controlled(entropy, state) for entropy in (0.1, 0.1, 0.5, 0.1)]
    assert found == pytest.approx([0.01, 0.015, 0, 0.015])
    for _ in range(9):
        controlled(0.5, state)
    assert state["entropy_weight"] == 0
    state = {"entropy_weight": 0.999}
    assert controlled(0.1, state) == 0.999
    assert state["entropy_weight"] == 1


def test_loss_by_hand():
    """As GRPO, and -0.1 times an entropy of 1 at each token."""
    policy = Views(completion=View(NEW, MASK, entropy=torch.ones_like(NEW)))
    columns = {"advantages": WORTH, "old_logps": OLD, "entropy_weight": torch.full((2,), 0.1, dtype=torch.float64)}
    config = METHOD.config({})
    loss, _ = METHOD.loss(batch=Batch(2, columns), policy=policy, reference=None, config=config, step=Step(0, 1))
    assert loss["policy"].tolist() == pytest.approx([-2.2, 0.8])
    assert loss["entropy_bonus"].values[MASK].tolist() == pytest.approx([-0.1] * 3)


def test_the_entropy_has_a_gradient():
    """Of (1/2, 1/2): ln 2. By each logit its gradient is -p (log p + H), which is 0 at the top and not beside it."""
    logits = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    entropy = METHOD.token_statistics(logits=logits, labels=None, config=METHOD.config({}))["entropy"]
    entropy.sum().backward()
    entropy = entropy.detach()
    p = 1 / (1 + math.exp(-1))
    assert entropy.tolist() == pytest.approx([math.log(2), -p * math.log(p) - (1 - p) * math.log(1 - p)])
    assert logits.grad[0].tolist() == pytest.approx([0, 0])
    assert logits.grad[1, 0].item() == pytest.approx(-p * (math.log(p) + float(entropy[1])))
