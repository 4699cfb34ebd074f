import pytest
import torch
from posttrain.contract.views import Example, Sequence
from posttrain_testkit.by_hand import POLICY, REFERENCE

CHANGED = {
    "chosen_changed": torch.tensor([[False, True, True, False]] * 2),
    "rejected_changed": torch.tensor([[False, True, True, False, False]] * 2),
}


def test_by_hand(call_loss):
    """(0.5 + 5 * 0.5) / 12 = 0.25; (0.5 - 2.5 + 2.5 - 0.5 - 0.5) / 13 = -0.0384615; 0.5 * 0.2884615 = 0.1442308."""
    loss, metrics = call_loss(POLICY, REFERENCE, columns=CHANGED)
    assert metrics["margin"][0].item() == pytest.approx(0.5 * (0.25 + 0.5 / 13))
    assert loss[0].item() == pytest.approx(0.623630, abs=1e-6)
    assert metrics["changed"].tolist() == pytest.approx([4 / 9, 4 / 9])


def test_changed_tokens_are_those_outside_long_matches(method):
    """1 2 3 4 9 6 7 and 1 2 3 4 8 8 6 7: the run of four matches, the run of two is too short."""
    texts = {"chosen": [1, 2, 3, 4, 9, 6, 7], "rejected": [1, 2, 3, 4, 8, 8, 6, 7]}
    rows = {}
    for role, text in texts.items():
        ids = torch.tensor([0, *text])
        rows[role] = [Sequence(ids, torch.arange(len(ids)) > 0)]
    found = method.annotate(examples=[Example(rows)], models=None, config=method.config({}), state={})
    assert found["chosen.changed"][0].tolist() == [False] * 4 + [True] * 3
    assert found["rejected.changed"][0].tolist() == [False] * 4 + [True] * 4
