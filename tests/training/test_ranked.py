"""Ranked rows: several answers a row, as lists, and columns of any role."""

import pytest
import torch
from posttrain.contract.views import Example, Sequence, View
from posttrain.errors import PluginError
from posttrain.network.token_model import build_views
from posttrain.training.annotate import add_columns
from posttrain.training.micro_batches import build_batch

CPU = torch.device("cpu")


def answer(tokens):
    """An answer of so many tokens behind a prompt of one."""
    return Sequence(torch.arange(tokens + 1), torch.arange(tokens + 1) > 0)


def ranked(*lengths, **columns):
    return Example({"completion": [answer(length) for length in lengths]}, columns)


def test_answers_of_a_row_stand_in_one_row_of_a_list():
    """Rows of 3 and of 2 answers with sums -1 to -5: one row a prompt, nothing behind the second one's."""
    examples = [ranked(1, 2, 1), ranked(2, 1)]
    logps = torch.tensor([-1.0, -1.5, -0.5, -3.0, -2.0, -2.0, -5.0])
    view = build_views(examples, {"logps": logps}).completion
    assert view.counts.tolist() == [3, 2]
    assert view.present.tolist() == [[True, True, True], [True, True, False]]
    assert view.listed(view.sum).tolist() == [[-1, -2, -3], [-4, -5, 0]]
    assert view.listed(view.lengths).tolist() == [[1, 2, 1], [2, 1, 0]]


def test_gradient_flows_through_a_list():
    """Each answer of the list gets its own number's gradient, the empty place none."""
    values = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    view = View(torch.zeros(3, 1), torch.ones(3, 1, dtype=torch.bool), counts=torch.tensor([1, 2]))
    (view.listed(values) * torch.tensor([[1.0, 100.0], [10.0, 20.0]])).sum().backward()
    assert values.grad.tolist() == [1, 10, 20]


def test_rows_of_one_answer_have_no_list():
    view = build_views([ranked(1), ranked(2)], {"logps": torch.zeros(3)}).completion
    with pytest.raises(AttributeError, match="this view has no 'present'"):
        view.listed(view.sum)


def test_scores_of_answers_become_a_row_each():
    """Other lists of numbers stay as they are: nothing says that they belong to the answers."""
    examples = [ranked(1, 2, 1, scores=[3.0, 2.0, 1.0], other=[1.0]), ranked(2, 1, scores=[0.5, 0.25], other=[2.0])]
    batch, _ = build_batch(examples, CPU)
    assert batch.scores.tolist() == [[3, 2, 1], [0.5, 0.25, 0]]
    assert batch.other == [[1.0], [2.0]]


def test_column_of_a_named_role():
    """``rejected.kept`` lies beside the rejected answer's tokens, a plain name beside the first role's."""
    pair = Example({"chosen": [answer(2)], "rejected": [answer(3)]})
    columns = {"rejected.kept": [torch.tensor([True, False, True])], "weight": [torch.tensor([0.5, 1.5])]}
    add_columns([pair], columns, "some")
    batch, masks = build_batch([pair], CPU)
    assert batch.rejected_kept.tolist() == [[True, False, True]]
    assert batch.weight.tolist() == [[0.5, 1.5]]
    assert list(masks) == ["rejected_kept"]


def test_column_of_another_length_is_refused():
    pair = Example({"chosen": [answer(2)], "rejected": [answer(3)]})
    with pytest.raises(PluginError, match=r"returned a tensor \(2,\) for 'rejected.kept', expected \(3,\)"):
        add_columns([pair], {"rejected.kept": [torch.tensor([True, False])]}, "some")
