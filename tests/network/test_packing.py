"""The plan of a packed row: what each segment sees, worked out by hand."""

import torch
from posttrain.network.segments import Segments, Sight
from transformers.masking_utils import causal_mask_function

CPU = torch.device("cpu")


def test_completions_see_their_prompt_and_themselves():
    """Row: prompt 0-2, completion 3-4 of it, a row alone 5, another completion 6-7 of the prompt."""
    plan = Segments([3, 2, 1, 2], [-1, 0, -1, 0], CPU)
    assert plan.seen == [3, 5, 1, 5]
    assert plan.keys.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 5, 0, 1, 2, 6, 7]
    assert plan.query_ends.tolist() == [0, 3, 5, 6, 8]
    assert plan.key_ends.tolist() == [0, 3, 8, 9, 14]


def test_branches_of_a_trunk_see_it_too():
    """Row: trunk 0-1, prompt 2 of it, completion 3-4 of that, another 5-6; a row 7-9 that continues the trunk alone."""
    plan = Segments([2, 1, 2, 2, 3], [-1, 0, 1, 1, 0], CPU)
    assert plan.lines == [[], [0], [0, 1], [0, 1], [0]]
    assert plan.seen == [2, 3, 5, 5, 5]
    assert plan.keys.tolist() == [0, 1, 0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2, 5, 6, 0, 1, 7, 8, 9]
    pair = plan.shapes[2]  # the two completions, in one call
    assert (pair.own.count, pair.own.length, pair.own.places) == (2, 2, slice(3, 7))
    assert (pair.before.length, pair.before.places.tolist()) == (3, [0, 1, 2, 0, 1, 2])
    masks = Sight(plan, causal_mask_function).masks
    assert masks[2].tolist() == [[True, True, True, True, False], [True] * 5]
    assert plan.shapes[0].before is masks[0] is None


def test_rows_that_share_nothing_need_no_gathering():
    plan = Segments([2, 4], [-1, -1], CPU)
    assert plan.keys is None
    assert plan.query_ends.tolist() == plan.key_ends.tolist() == [0, 2, 6]


def test_segments_of_one_shape_stand_together_and_are_put_back():
    """Lengths 2, 1, 2: the kernel gets 0-1 and 3-4 first, then 2; ``order`` undoes that."""
    plan = Segments([2, 1, 2], [-1, -1, -1], CPU)
    by_shape = torch.tensor([0, 1, 3, 4, 2])
    assert by_shape[plan.order].tolist() == [0, 1, 2, 3, 4]
    assert Segments([2, 2, 1], [-1, -1, -1], CPU).order is None
