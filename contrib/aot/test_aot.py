from types import SimpleNamespace

import posttrain_method_aot as aot
import pytest
import torch
from posttrain.contract.views import Batch, Example, Sequence, View, Views


def pairs(policy, reference):
    """Pairs with whole-answer log-probs as (chosen, rejected), and the models that say so."""
    examples, values = [], {}
    for place, (ours, theirs) in enumerate(zip(policy, reference, strict=True)):
        rows = [Sequence(torch.tensor([place, side]), torch.tensor([False, True])) for side in (0, 1)]
        examples.append(Example({"chosen": [rows[0]], "rejected": [rows[1]]}))
        for side, row in enumerate(rows):
            values[id(row)] = {"policy": ours[side], "reference": theirs[side]}
    models = SimpleNamespace(logps=lambda rows, model: [torch.tensor([values[id(r)][model]]) for r in rows])
    return examples, models


def loss_of(policy, column, **options):
    chosen, rejected = (torch.tensor([[p[side]] for p in policy], dtype=torch.float64) for side in (0, 1))
    mask = torch.ones(len(policy), 1, dtype=torch.bool)
    views = Views(chosen=View(chosen, mask), rejected=View(rejected, mask))
    batch = Batch(len(policy), {"ranked_reference_margin": column})
    return aot.posttrain_loss(batch, views, aot.Config(**options))[0]


def test_margins_meet_by_rank():
    """u = 5, -1, 2 and v = 0.5, 3, 1: ranks 3, 1, 2 of u meet the sorted v 0.5, 1, 3 as 3, 0.5, 1."""
    examples, models = pairs([(5, 0), (0, 1), (2, 0)], [(0.5, 0), (3, 0), (1, 0)])
    found = aot.posttrain_annotate(examples, models)["ranked_reference_margin"]
    assert found.tolist() == [3.0, 0.5, 1.0]


def test_by_hand():
    """d = 5 - 3 = 2, beta 0.5: log(1 + e^-1) = 0.313262; smoothing 0.1 adds 0.1 * 1 = 0.413262."""
    column = torch.tensor([3.0])
    assert loss_of([(5, 0)], column, beta=0.5).item() == pytest.approx(0.313262, abs=1e-6)
    assert loss_of([(5, 0)], column, beta=0.5, label_smoothing=0.1).item() == pytest.approx(0.413262, abs=1e-6)


def test_cutting_the_step_changes_nothing():
    """S7: one micro-batch of three or three of one."""
    policy = [(5, 0), (0, 1), (2, 0)]
    column = aot.posttrain_annotate(*pairs(policy, [(0.5, 0), (3, 0), (1, 0)]))["ranked_reference_margin"]
    whole = loss_of(policy, column)
    parts = torch.cat([loss_of([pair], column[[place]]) for place, pair in enumerate(policy)])
    torch.testing.assert_close(whole, parts)
