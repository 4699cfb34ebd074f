"""Mallows DPO against numbers worked by hand and the golden values."""

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
        config=METHOD.config({"c": 1.0} | options),
        step=step or Step(0, 1),
    )


def uncertain(chosen, rejected):
    """POLICY with these shares of entropy on every token."""
    sides = ((POLICY.chosen, chosen), (POLICY.rejected, rejected))
    rows = [View(one.logps, one.mask, reference_entropy=torch.full_like(one.logps, value)) for one, value in sides]
    return Views(chosen=rows[0], rejected=rows[1])


def test_by_hand():
    """-log 0.4 = 0.916291, times 0.15 is 0.137444: log(1 + e^-0.137444) = 0.626785."""
    loss, metrics = loss_of(uncertain(0.5, 0.3))
    assert metrics["dispersion"].tolist() == pytest.approx([0.916291] * 2, abs=1e-6)
    assert loss[0].item() == pytest.approx(0.626785, abs=1e-6)
    square = loss_of(uncertain(0.5, 0.3), loss_type="ipo")[0]
    assert square[0].item() == pytest.approx((0.916291 * 1.5 - 5) ** 2, abs=1e-4)


def test_the_scale_is_that_of_the_authors():
    """0.29 times the index."""
    assert METHOD.config({}).c == 0.29
    _, metrics = loss_of(uncertain(0.5, 0.3), c=0.29)
    assert metrics["dispersion"].tolist() == pytest.approx([0.29 * 0.916291] * 2, abs=1e-6)


def test_entropy_of_known_distributions():
    """Even over four tokens it is all there can be; of (1/2, 1/2, 0, 0) half of it."""
    logits = torch.tensor([[0.25] * 4, [0.5, 0.5, 1e-30, 1e-30]], dtype=torch.float64).log()
    labels = torch.zeros(2, dtype=torch.long)
    found = METHOD.token_statistics(logits=logits, labels=labels, reference_logits=logits, config=METHOD.config({}))
    assert found["reference_entropy"].tolist() == pytest.approx([1, 0.5])


def test_goldens():
    found = evaluate(GOLDENS, "mallows-dpo", [str(HERE)])
    assert {one.entry: one.status for one in found} == dict.fromkeys(("mallows-dpo",), "equal")
