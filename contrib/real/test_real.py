import math
from functools import partial

import pytest
import torch
from posttrain_testkit.by_hand import completion_loss, examples_of, method_beside

METHOD = method_beside(__file__)
loss_of = partial(completion_loss, METHOD)
D = torch.float64


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
