"""Dense DPO against numbers worked by hand and the golden values."""

from pathlib import Path

import pytest
import torch
from posttrain.methods import load
from posttrain.views import Batch, Example, Sequence, Step, View, Views
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


CHANGED = {
    "chosen_changed": torch.tensor([[False, True, True, False]] * 2),
    "rejected_changed": torch.tensor([[False, True, True, False, False]] * 2),
}


def test_by_hand():
    """(0.5 + 5 * 0.5) / 12 = 0.25; (0.5 - 2.5 + 2.5 - 0.5 - 0.5) / 13 = -0.0384615; 0.5 * 0.2884615 = 0.1442308."""
    loss, metrics = loss_of(columns=CHANGED)
    assert metrics["margin"][0].item() == pytest.approx(0.5 * (0.25 + 0.5 / 13))
    assert loss[0].item() == pytest.approx(0.623630, abs=1e-6)
    assert metrics["changed"].tolist() == pytest.approx([4 / 9, 4 / 9])


def test_changed_tokens_are_those_outside_long_matches():
    """1 2 3 4 9 6 7 and 1 2 3 4 8 8 6 7: the run of four matches, the run of two is too short."""
    texts = {"chosen": [1, 2, 3, 4, 9, 6, 7], "rejected": [1, 2, 3, 4, 8, 8, 6, 7]}
    rows = {}
    for role, text in texts.items():
        ids = torch.tensor([0, *text])
        rows[role] = [Sequence(ids, torch.arange(len(ids)) > 0)]
    found = METHOD.annotate(examples=[Example(rows)], models=None, config=METHOD.config({}), state={})
    assert found["chosen.changed"][0].tolist() == [False] * 4 + [True] * 3
    assert found["rejected.changed"][0].tolist() == [False] * 4 + [True] * 4


def test_goldens():
    found = evaluate(GOLDENS, "ddpo", [str(HERE)])
    assert {one.entry: one.status for one in found} == dict.fromkeys(("ddpo",), "equal")
