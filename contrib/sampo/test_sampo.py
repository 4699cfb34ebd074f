import pytest
import torch
from posttrain.contract.views import Example, Sequence
from posttrain_testkit.by_hand import POLICY, REFERENCE


def keep(*rejected):
    """Columns that keep all of the chosen answers and these places of the rejected ones."""
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[:, list(rejected)] = True
    return {"chosen_kept": torch.ones(2, 4, dtype=torch.bool), "rejected_kept": mask}


def test_by_hand(call_loss):
    """Without the third rejected token, 0.5 against the reference: 0.1 * (1 + 1) = 0.2, log(1 + e^-0.2) = 0.598139."""
    loss, metrics = call_loss(POLICY, REFERENCE, columns=keep(0, 1, 3, 4))
    assert metrics["margin"][0].item() == pytest.approx(0.2)
    assert loss[0].item() == pytest.approx(0.598139, abs=1e-6)
    assert metrics["kept"].tolist() == pytest.approx([8 / 9, 8 / 9])


def test_draw_keeps_as_many_as_the_shorter_answer_has_and_changes_with_the_step(method):
    tokens = {"chosen": torch.arange(4), "rejected": torch.arange(41)}
    rows = {role: [Sequence(ids, ids > 0)] for role, ids in tokens.items()}
    runs = [{}, {}]
    found = [[method.annotate(examples=[Example(rows)], models=None, config=method.config({}), state=state)
              for _ in range(3)] for state in runs]  # fmt: skip
    assert all(one["chosen.kept"][0].tolist() == [True] * 3 for one in found[0])
    masks = [[one["rejected.kept"][0].tolist() for one in run] for run in found]
    assert masks[0] == masks[1]
    assert [sum(mask) for mask in masks[0]] == [3, 3, 3]
    assert len({tuple(mask) for mask in masks[0]}) == 3
