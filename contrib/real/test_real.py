"""REAL against numbers worked by hand and the golden values."""

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


def examples_of(new, old, worth, groups):
    """Examples with these log-probs now and under the sampler, advantages and groups, and the models that say so."""
    new, old = ([torch.tensor(row, dtype=D) for row in rows] for rows in (new, old))
    sequences = [SimpleNamespace(per_token={"old_logps": row}) for row in old]
    columns = [{"advantages": a, "group": float(g)} for a, g in zip(worth, groups, strict=True)]
    examples = [
        SimpleNamespace(sequences={"completion": [one]}, columns=row)
        for one, row in zip(sequences, columns, strict=True)
    ]
    return examples, SimpleNamespace(logps=lambda sequences, model: new)


def step(new, worth, groups, tau=0.5):
    """The loss of a step, and its gradient by the log-probs, of completions of one token."""
    examples, models = examples_of([[x] for x in new], [[0.0]] * len(new), worth, groups)
    columns = METHOD.annotate(examples=examples, models=models, config=METHOD.config({"tau": tau}), state={})
    logps = torch.tensor(new, dtype=D)[:, None].requires_grad_()
    everything = torch.ones(len(new), 1, dtype=torch.bool)
    loss, _ = loss_of(logps, torch.tensor(worth, dtype=D), everything, torch.zeros(len(new), 1, dtype=D), **columns)
    loss.mean().backward()
    return loss.mean().item(), logps.grad[:, 0].tolist()


def exact(scores, worth, groups, tau=0.5):
    """The paper's loss in plain Python."""
    total = 0.0
    for one in set(groups):
        rows = [i for i, group in enumerate(groups) if group == one]
        good, bad = [i for i in rows if worth[i] > 0], [i for i in rows if worth[i] <= 0]
        if good and bad:
            total += math.log(1 + sum(math.exp(scores[i] / tau) for i in bad))
            total += math.log(1 + sum(math.exp(-scores[i] / tau) for i in good))
    return total / len(set(groups))


def test_value_and_gradient_are_those_of_the_coupled_loss():
    """Against the paper's loss and its slopes by small steps; the third group has only good completions."""
    scores, worth, groups = [0.3, -0.2, 0.1, 0.5, -0.4, 0.2], [1.0, -1.0, -1.0, 1.0, -1.0, 1.0], [0, 0, 0, 1, 1, 2]
    loss, gradient = step(scores, worth, groups)
    assert loss == pytest.approx(exact(scores, worth, groups))
    for i in range(6):
        ends = [exact([s + (h if i == j else 0) for j, s in enumerate(scores)], worth, groups) for h in (1e-6, -1e-6)]
        assert gradient[i] == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-8)


def test_fresh_samples_by_hand():
    """Scores 0, one good and two bad: log 3 + log 2; slopes 2/3 for each bad one and -1 for the good one."""
    loss, gradient = step([0.0, 0.0, 0.0], [1.0, -1.0, -1.0], [0, 0, 0])
    assert loss == pytest.approx(math.log(3) + math.log(2))
    assert gradient == pytest.approx([-1, 2 / 3, 2 / 3])


def test_goldens():
    (result,) = evaluate(GOLDENS, "real", [str(HERE)])
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "advantages", "grad_logp_new"]
