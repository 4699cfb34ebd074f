"""WPO against numbers worked by hand and the golden values."""

import math
from pathlib import Path

import pytest
import torch
from posttrain.methods import load
from posttrain.views import Batch, Step, View, Views
from posttrain_testkit.goldens.compare import evaluate

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "offline.json"
METHOD = load(str(HERE))


def views(chosen, rejected):
    """Views of one row of log-probs a pair; sums -10 and -8 over 4 tokens, -12 and -7 over 5 in POLICY."""
    sides = {}
    for role, rows in (("chosen", chosen), ("rejected", rejected)):
        values = torch.tensor(rows, dtype=torch.float64)  # (B, T)
        sides[role] = View(values, torch.ones_like(values, dtype=torch.bool))
    return Views(**sides)


#: Log-ratios 1 and -0.5 of the first pair, -0.5 and 0.25 of the second.
POLICY = views([[-1, -2, -3, -4], [-2, -2, -2, -2]], [[-1, -2.5, -2, -3.5, -3], [-1, -1, -1, -2, -2]])
REFERENCE = views([[-1.5, -2, -3.5, -4], [-2, -2, -2, -1.5]], [[-1.5, -2, -2.5, -3, -2.5], [-1, -1, -1, -2, -2.25]])


def loss_of(policy=POLICY, reference=REFERENCE, columns=None, step=None, **options):
    return METHOD.loss(
        batch=Batch(len(policy.chosen.logps), columns or {}),
        policy=policy,
        reference=reference,
        config=METHOD.config(options),
        step=step or Step(0, 1),
    )


def weighed(chosen, rejected):
    """POLICY with these collision statistics on every token."""
    sides = ((POLICY.chosen, chosen), (POLICY.rejected, rejected))
    rows = [View(one.logps, one.mask, log_collision=torch.full_like(one.logps, value)) for one, value in sides]
    return Views(chosen=rows[0], rejected=rows[1])


def test_by_hand():
    """Log-weights -2.5 + 1.5 = -1 and -2.4 + 1.4 = -1: e^-2 log(1 + e^-0.15) = 0.135335 * 0.620957 = 0.084037."""
    loss, metrics = loss_of(weighed(-1.5, -1.4), beta=0.1)
    assert metrics["weight"][0].item() == pytest.approx(math.exp(-2))
    assert loss[0].item() == pytest.approx(0.084037, abs=1e-6)


def test_statistic_of_a_known_distribution():
    """Probabilities 0.5, 0.25, 0.25: the sum of squares is 0.375. Of a certain one it is 1."""
    logits = torch.tensor([[0.5, 0.25, 0.25], [1.0, 1e-30, 1e-30]], dtype=torch.float64).log().requires_grad_()
    labels = torch.zeros(2, dtype=torch.long)
    found = METHOD.token_statistics(logits=logits, labels=labels, config=METHOD.config({}))["log_collision"]
    assert found.tolist() == pytest.approx([math.log(0.375), 0.0])
    assert not found.requires_grad


def test_no_gradient_through_the_weights():
    """By a chosen token it is -weight * beta * sigmoid(-margin)."""
    chosen = POLICY.chosen.logps.clone().requires_grad_()
    other = weighed(-1.5, -1.4)
    view = View(chosen, POLICY.chosen.mask, log_collision=other.chosen.log_collision)
    loss_of(Views(chosen=view, rejected=other.rejected), beta=0.1)[0].sum().backward()
    assert chosen.grad[0, 0].item() == pytest.approx(-math.exp(-2) * 0.1 / (1 + math.exp(0.15)))


def test_goldens():
    found = evaluate(GOLDENS, "wpo", [str(HERE)])
    assert {one.entry: one.status for one in found} == dict.fromkeys(("wpo",), "equal")
