"""The norm of gradients, against sums in float64."""

import math

import pytest
import torch
from posttrain.distributed.replicated import ROW, norm_of


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("length", [0, 1, ROW - 1, ROW, 3 * ROW + 7])
def test_norm_of_gradients_of_any_length_and_dtype(dtype, length):
    dice = torch.Generator().manual_seed(0)
    gradients = [torch.randn(length, generator=dice).to(dtype), torch.randn(3, 7, generator=dice).to(dtype)]
    expected = math.sqrt(sum(float(one.double().square().sum()) for one in gradients))
    assert norm_of(gradients) == pytest.approx(expected, rel=1e-6)


def test_norm_of_a_gradient_as_large_as_a_vocabulary():
    """Summed one by one in float32, tens of millions of squares lose their fourth digit."""
    count = 2**24 + 5
    each = float(torch.tensor(0.1))  # as float32 has it
    assert norm_of([torch.full((count,), 0.1)]) == pytest.approx(each * math.sqrt(count), rel=1e-6)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("place", [0, -1])
def test_a_number_that_is_not_finite_makes_the_norm_so(bad, place):
    gradient = torch.ones(ROW + 3)
    gradient[place] = bad
    assert not math.isfinite(norm_of([torch.ones(2), gradient]))
