"""Passes of a step: at most so many tokens each, counted by hand."""

import pytest
import torch
from posttrain.contract.views import Example, Sequence
from posttrain.training.micro_batches import micro_batches


def examples(*lengths):
    """Rows of these lengths; no two begin alike, so that nothing is shared."""
    rows = []
    for place, length in enumerate(lengths):
        ids = torch.full((length,), place)
        rows.append(Example({"completion": [Sequence(ids, torch.ones(length, dtype=torch.bool))]}))
    return rows


@pytest.mark.parametrize(
    ("packed", "tokens", "cut"),
    [
        (True, 8, [[3, 4, 1], [4], [9], [2, 2]]),  # in the order of the step; a row beyond the limit is alone
        (True, 7, [[3, 4], [1, 4], [9], [2, 2]]),
        (True, 6, [[3], [4, 1], [4], [9], [2, 2]]),
        (True, 100, [[3, 4, 1, 4, 9, 2, 2]]),
        (False, 8, [[1, 2, 2], [3, 4], [4], [9]]),  # by length, and each costs as much as the longest
        (False, 7, [[1, 2, 2], [3], [4], [4], [9]]),
    ],
)
def test_a_pass_has_at_most_so_many_tokens(packed, tokens, cut):
    found = micro_batches(examples(3, 4, 1, 4, 9, 2, 2), tokens, None, packed)
    assert [[len(one.sequences["completion"][0]) for one in micro] for micro in found] == cut


def test_a_pass_has_so_many_rows_whatever_their_length():
    found = micro_batches(examples(3, 4, 1, 4, 9), 1, 2, True)
    assert [len(micro) for micro in found] == [2, 2, 1]
