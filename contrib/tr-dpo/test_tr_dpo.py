"""TR-DPO against numbers worked by hand and the golden values."""

import math
from pathlib import Path

import pytest
import torch
from posttrain import api
from posttrain.methods import load
from posttrain.views import Batch, Step, View, Views
from posttrain_testkit.goldens.compare import evaluate
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer

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


def test_by_hand():
    """0.1 * 1.5 = 0.15: log(1 + e^-0.15) = 0.620957."""
    assert loss_of(beta=0.1)[0].tolist() == pytest.approx([0.620957, -logsig(-0.075)], abs=1e-6)


def test_reference_follows_the_policy(tmp_path):
    """A run of two steps with an update after the first: the second step's margin is that of a nearer reference."""
    runs = []
    for every in (1, 512):
        rows = [{"prompt": "ab", "chosen": "ca", "rejected": "gh"}] * 4
        run = api.train(str(HERE), model=tiny_model(), tokenizer=tiny_tokenizer(), data=rows, steps=3, batch_size=4,
                        learning_rate=1e-2, schedule="constant", reference_every=every, reference_rate=1.0,
                        cache="off", progress="quiet", device="cpu", output=str(tmp_path / str(every)))  # fmt: skip
        runs.append([line["margin"] for line in run.metrics])
    assert runs[0][0] == runs[1][0] == 0
    assert runs[0][1:] == pytest.approx([0, 0], abs=1e-5)
    assert runs[1][2] > runs[1][1] > 0


def test_goldens():
    found = evaluate(GOLDENS, "tr-dpo", [str(HERE)])
    assert {one.entry: one.status for one in found} == dict.fromkeys(("tr-dpo",), "equal")
