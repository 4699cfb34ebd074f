"""Adaptive entropy control against numbers worked by hand and the golden values."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from posttrain.methods import load
from posttrain.views import Batch, PerToken, Step, View, Views
from posttrain_testkit.goldens.compare import evaluate

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "online.json"
METHOD = load(str(HERE))
D = torch.float64


def matrix(*rows):
    return torch.tensor(rows, dtype=D)


def advantages(rewards, group, mask=None, options=None, state=None, **columns):
    group = torch.tensor(group)
    mask = torch.ones(len(group), 2, dtype=torch.bool) if mask is None else mask
    rollouts = SimpleNamespace(group=group, mask=mask, lengths=mask.sum(-1), **columns)
    config, state = METHOD.config(options or {}), {} if state is None else state
    rewards = torch.tensor(rewards, dtype=D)
    return METHOD.worth(rewards=rewards, rollouts=rollouts, config=config, state=state)


def loss_of(new, worth, mask, old=None, options=None, reference=None, **columns):
    """The unreduced loss, and the metrics; ``old`` are the log-probs of the policy that sampled."""
    columns |= {"advantages": worth, "old_logps": new.detach() if old is None else old}
    loss, metrics = METHOD.loss(
        batch=Batch(len(new), columns),
        policy=Views(completion=View(new, mask, entropy=torch.ones_like(new))),
        reference=None if reference is None else Views(completion=View(reference, mask)),
        config=METHOD.config(options or {}),
        step=Step(0, 1),
    )
    return loss.values[loss.mask] if isinstance(loss, PerToken) else loss, metrics


#: Ratios 1 and 3/2 for a good completion, 1/2 for a bad one of one token.
MASK = torch.tensor([[True, True], [True, False]])
OLD = matrix([-1.0, -2.0], [-0.5, 0.0])
NEW = OLD + matrix([1.0, 1.5], [0.5, 1.0]).log()
WORTH = torch.tensor([2.0, -1.0], dtype=D)


def controlled(entropy, state, **options):
    """The weight for a batch of this entropy."""
    rows = torch.full((2, 2), entropy, dtype=D)
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
    columns = {"advantages": WORTH, "old_logps": OLD, "entropy_weight": torch.full((2,), 0.1, dtype=D)}
    config = METHOD.config({})
    loss, _ = METHOD.loss(batch=Batch(2, columns), policy=policy, reference=None, config=config, step=Step(0, 1))
    assert loss["policy"].tolist() == pytest.approx([-2.2, 0.8])
    assert loss["entropy_bonus"].values[MASK].tolist() == pytest.approx([-0.1] * 3)


def test_the_entropy_has_a_gradient():
    """Of (1/2, 1/2): ln 2. By each logit its gradient is -p (log p + H), which is 0 at the top and not beside it."""
    logits = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=D, requires_grad=True)
    entropy = METHOD.token_statistics(logits=logits, labels=None, config=METHOD.config({}))["entropy"]
    entropy.sum().backward()
    entropy = entropy.detach()
    p = 1 / (1 + math.exp(-1))
    assert entropy.tolist() == pytest.approx([math.log(2), -p * math.log(p) - (1 - p) * math.log(1 - p)])
    assert logits.grad[0].tolist() == pytest.approx([0, 0])
    assert logits.grad[1, 0].item() == pytest.approx(-p * (math.log(p) + float(entropy[1])))


def test_goldens():
    (result,) = evaluate(GOLDENS, "adaptive-entropy", [str(HERE)])
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "advantages", "grad_logp_new"]
