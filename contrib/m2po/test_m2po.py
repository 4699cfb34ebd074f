from types import SimpleNamespace

import pytest
import torch
from posttrain_testkit.by_hand import MASK, NEW, OLD, WORTH, method_beside, tensor

METHOD = method_beside(__file__)


def kept(*log_ratios, **options):
    """Annotate completions whose tokens have these log-ratios to their sampler."""
    rows = [torch.tensor(row, dtype=torch.float64) for row in log_ratios]
    examples = [SimpleNamespace(sequences={"completion": [sequence_of(row)]}, columns={}) for row in rows]
    models = SimpleNamespace(logps=lambda sequences, model: rows)
    found = METHOD.annotate(examples=examples, models=models, config=METHOD.config(options), state={})
    return [row.tolist() for row in found["kept"]]


def sequence_of(row):
    return SimpleNamespace(per_token={"sampled_logps": torch.zeros_like(row)})


def test_the_largest_go_first():
    """Squares 0.01, 0.09, 0.01, 0.25: means 0.01, 0.01, 0.0367, 0.09, of which three lie below 0.04."""
    assert kept([0.1, -0.3], [0.1, 0.5]) == [[1, 1], [1, 0]]
    assert kept([0.1, -0.3], [0.1, 0.5], m2_threshold=0.03) == [[1, 0], [1, 0]]


def test_fresh_samples_are_kept_and_hopeless_ones_are_not():
    assert kept([0.0, 0.0], [0.0]) == [[1, 1], [1]]
    assert kept([3.0], [2.0]) == [[0], [0]]


def test_loss_by_hand(completion_loss):
    """Ratios 1, 3/2 and 1/2; the second is left out."""
    loss, _ = completion_loss(NEW, WORTH, MASK, NEW, sampled_logps=OLD, kept=tensor([1.0, 0.0], [1.0, 1.0]))
    assert loss.tolist() == pytest.approx([-2, 0, 0.5])


def test_advantages_by_hand(advantages_of):
    """Of {1, 0, 1}: mean 2/3, sample deviation 0.577350. Equal rewards are worth nothing, also a lone one's."""
    found, _ = advantages_of([1, 0, 1, 0.1, 0.1, 5], [0, 0, 0, 1, 1, 2])
    assert found.tolist() == pytest.approx([0.577349, -1.154699, 0.577349, 0, 0, 0], abs=1e-6)
