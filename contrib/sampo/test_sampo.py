"""SamPO against numbers worked by hand and the golden values."""

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


def keep(*rejected):
    """Columns that keep all of the chosen answers and these places of the rejected ones."""
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[:, list(rejected)] = True
    return {"chosen_kept": torch.ones(2, 4, dtype=torch.bool), "rejected_kept": mask}


def test_by_hand():
    """Without the third rejected token, 0.5 against the reference: 0.1 * (1 + 1) = 0.2, log(1 + e^-0.2) = 0.598139."""
    loss, metrics = loss_of(columns=keep(0, 1, 3, 4))
    assert metrics["margin"][0].item() == pytest.approx(0.2)
    assert loss[0].item() == pytest.approx(0.598139, abs=1e-6)
    assert metrics["kept"].tolist() == pytest.approx([8 / 9, 8 / 9])


def test_draw_keeps_as_many_as_the_shorter_answer_has_and_changes_with_the_step():
    tokens = {"chosen": torch.arange(4), "rejected": torch.arange(41)}
    rows = {role: [Sequence(ids, ids > 0)] for role, ids in tokens.items()}
    runs = [{}, {}]
    found = [[METHOD.annotate(examples=[Example(rows)], models=None, config=METHOD.config({}), state=state)
              for _ in range(3)] for state in runs]  # fmt: skip
    assert all(one["chosen.kept"][0].tolist() == [True] * 3 for one in found[0])
    masks = [[one["rejected.kept"][0].tolist() for one in run] for run in found]
    assert masks[0] == masks[1]
    assert [sum(mask) for mask in masks[0]] == [3, 3, 3]
    assert len({tuple(mask) for mask in masks[0]}) == 3


def test_goldens():
    found = evaluate(GOLDENS, "sampo", [str(HERE)])
    assert {one.entry: one.status for one in found} == dict.fromkeys(("sampo",), "equal")
