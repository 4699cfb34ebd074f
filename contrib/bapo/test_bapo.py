import math

import pytest
import torch
from posttrain_testkit.by_hand import MASK, NEW, OLD, WORTH, examples_of, method_beside

METHOD = method_beside(__file__)


def bounds(new, worth, **options):
    examples, models = examples_of(new, [[0.0] * len(row) for row in new], worth, [0] * len(new))
    found = METHOD.annotate(examples=examples, models=models, config=METHOD.config(options), state={})
    return [found[name][0].item() for name in ("clip_floor", "clip_ceiling", "balance")]


def test_bounds_move_until_the_balance_is_reached():
    """A good token at a ratio of 2 weighs 1.2 against a bad one at 1: enough for 1.2, not for 1.5. To raise the lower
    bound does not help at a ratio of 1; 15 steps of the upper one do."""
    rows = [[math.log(2)], [0.0]]
    assert bounds(rows, [1.0, -1.0], target_pos_neg_ratio=1.19)[:2] == pytest.approx([0.6, 1.2])
    assert bounds(rows, [1.0, -1.0], target_pos_neg_ratio=1.499) == pytest.approx([0.9, 1.5, 1.5])
    assert bounds(rows, [1.0, -1.0], target_pos_neg_ratio=9.0) == pytest.approx([0.9, 3.0, 2.0])


def test_nothing_to_balance():
    assert bounds([[0.0], [0.0]], [1.0, 1.0])[:2] == pytest.approx([0.6, 1.2])
    assert bounds([[0.0], [0.0]], [0.0, 0.0])[:2] == pytest.approx([0.9, 3.0])


def test_loss_by_hand(completion_loss):
    """Bounds 0.7 and 1.4: ratios 1, 3/2 (held) and 1/2 (held); a bad token at a ratio of 5 costs 3."""
    columns = {name: torch.full((2,), value) for name, value in (("clip_floor", 0.7), ("clip_ceiling", 1.4))}
    columns["balance"] = WORTH
    loss, _ = completion_loss(NEW, WORTH, MASK, OLD, **columns)
    assert loss.tolist() == pytest.approx([-2, -2.8, 0.7])
    assert completion_loss(OLD + math.log(5), WORTH, MASK, OLD, **columns)[0][2].item() == pytest.approx(3)


def test_advantages_by_hand(advantages_of):
    """Of {1, 0, 1}: mean 2/3, sample deviation 0.577350. Equal rewards are worth nothing, also a lone one's."""
    found, _ = advantages_of([1, 0, 1, 0.1, 0.1, 5], [0, 0, 0, 1, 1, 2])
    assert found.tolist() == pytest.approx([0.577349, -1.154699, 0.577349, 0, 0, 0], abs=1e-6)
