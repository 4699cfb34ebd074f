"""DPO under an f-divergence against numbers worked by hand and the golden values."""

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


def logsig(x):
    return -math.log(1 + math.exp(-x))


@pytest.mark.parametrize(
    ("divergence", "slope"),
    [
        ("reverse_kl", lambda rho: rho),
        ("forward_kl", lambda rho: 1 - math.exp(-rho)),
        ("js_divergence", lambda rho: math.log(2 * math.exp(rho) / (1 + math.exp(rho)))),
        ("alpha_divergence", lambda rho: (math.exp(-0.5 * rho) - 1) / -0.5),
    ],
)
def test_by_hand(divergence, slope):
    """The formulas, number by number, on the log-ratios 1 and -0.5, -0.5 and 0.25."""
    expected = [-logsig(0.1 * (slope(w) - slope(r))) for w, r in ((1, -0.5), (-0.5, 0.25))]
    assert loss_of(divergence=divergence)[0].tolist() == pytest.approx(expected)


def test_alpha_of_one_is_dpo_and_of_nearly_zero_is_forward():
    near = {"divergence": "alpha_divergence", "alpha": 1 + 1e-9}
    assert loss_of(**near)[0].tolist() == pytest.approx(loss_of(divergence="reverse_kl")[0].tolist(), abs=1e-6)
    near["alpha"] = 1e-9
    assert loss_of(**near)[0].tolist() == pytest.approx(loss_of(divergence="forward_kl")[0].tolist(), abs=1e-6)


def test_goldens():
    found = evaluate(GOLDENS, "f-dpo", [str(HERE)])
    assert {one.entry: one.status for one in found} == dict.fromkeys(
        (
            "f-dpo",
            "f-dpo:forward_kl",
            "f-dpo:alpha_0.5",
            "f-dpo:reverse_kl",
        ),
        "equal",
    )
