import math

import pytest
import torch
from posttrain.contract.views import Batch, Step, View, Views
from posttrain_testkit.by_hand import examples_of, method_beside

METHOD = method_beside(__file__)
D = torch.float64


def step(new, old, worth, groups, **options):
    """The loss of a step, and its gradient by the log-probs, of completions of one token."""
    config = METHOD.config(options)
    examples, models = examples_of([[x] for x in new], [[x] for x in old], worth, groups)
    columns = METHOD.annotate(examples=examples, models=models, config=config, state={})
    columns |= {"advantages": torch.tensor(worth, dtype=D), "old_logps": torch.tensor(old, dtype=D)[:, None]}
    logps = torch.tensor(new, dtype=D)[:, None].requires_grad_()
    view = View(logps, torch.ones(len(new), 1, dtype=torch.bool), entropy=torch.ones_like(logps))
    batch, policy = Batch(len(new), columns), Views(completion=view)
    terms, _ = METHOD.loss(batch=batch, policy=policy, reference=None, config=config, step=Step(0, 1))
    loss = terms["ranking"].mean() + terms["divergence"].values.mean()
    loss.backward()
    return loss.item(), logps.grad[:, 0].tolist()


def exact(new, old, worth, groups, tau=10.0, beta=1000.0, delta=1e-4, score="log-L"):
    """The paper's loss in plain Python."""
    scores = new if score == "log-L" else [math.exp(x - y) for x, y in zip(new, old, strict=True)]
    found = []
    for one in set(groups):
        rows = [i for i, group in enumerate(groups) if group == one]
        good, bad = [i for i in rows if worth[i] > 0], [i for i in rows if worth[i] < 0]
        if good and bad:
            ranks = [sum(math.exp((scores[j] - scores[i]) / tau) for j in bad) / len(bad) for i in good]
            found.append(sum(tau * math.log(rank) for rank in ranks) / len(good))
    kl = sum(y - x for x, y in zip(new, old, strict=True)) / len(new)
    return sum(found) / len(found) + beta * max(kl - delta, 0) ** 2


@pytest.mark.parametrize("options", [{"tau": 0.5}, {"score": "L-ratio", "tau": 1.0}, {"beta": 0.0}])
def test_value_and_gradient_are_those_of_the_coupled_loss(options):
    """The paper's loss and its slopes by small steps, a divergence beyond delta, and a group of one kind."""
    new, old = [-1.0, -0.5, -2.0, -1.3, -0.2, -0.7], [-0.9, -0.6, -1.5, -1.2, -0.1, -0.7]
    worth, groups = [1.0, -1.0, -1.0, 1.0, -1.0, 1.0], [0, 0, 0, 1, 1, 2]
    loss, gradient = step(new, old, worth, groups, **options)
    assert loss == pytest.approx(exact(new, old, worth, groups, **options))
    for i in range(6):
        ends = [
            exact([x + (h if i == j else 0) for j, x in enumerate(new)], old, worth, groups, **options)
            for h in (1e-6, -1e-6)
        ]
        assert gradient[i] == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-6)


def test_within_delta_nothing_is_punished():
    """Fresh samples, one good at -1 and one bad at -2: the loss is -2 + 1, the slopes -1 and 1."""
    loss, gradient = step([-1.0, -2.0], [-1.0, -2.0], [1.0, -1.0], [0, 0])
    assert (loss, gradient) == (pytest.approx(-1), pytest.approx([-1, 1]))
