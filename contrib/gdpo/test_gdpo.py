import math
from functools import partial

import pytest
import torch
from posttrain.errors import SettingsError
from posttrain_testkit.by_hand import MASK, NEW, OLD, WORTH, advantages_of, method_beside

METHOD = method_beside(__file__)
advantages = partial(advantages_of, METHOD)


def of_parts(*parts, **options):
    named = {f"reward {place}": torch.tensor(part, dtype=torch.float64) for place, part in enumerate(parts)}
    return advantages(parts[0], [0, 0, 1, 1], reward_parts=named, options=options)[0].tolist()


def test_each_reward_counts_the_same():
    """One reward in hundreds, one in units, at odds in the first group: nothing; they agree in the second: 1 and -1.

    Sums are 0, 0, 2 / sqrt 2 and -2 / sqrt 2; their deviation is sqrt(4 / 3)."""
    found = of_parts([100.0, 0, 100, 0], [0.0, 1, 1, 0], advantage_epsilon=1e-9)
    assert found == pytest.approx([0, 0, 2**0.5 / (4 / 3) ** 0.5, -(2**0.5) / (4 / 3) ** 0.5], abs=1e-6)


def test_weights_and_what_is_not_scored():
    assert of_parts([1.0, 0, 1, 0], [0.0, 1, 0, 1], weights=(1.0, 0.0)) == of_parts([1.0, 0, 1, 0])
    assert of_parts([1.0, 0, 1, 0], [math.nan] * 4) == of_parts([1.0, 0, 1, 0])
    assert of_parts([0.1, 0.1, 0.1, 0.1]) == [0, 0, 0, 0]
    with pytest.raises(SettingsError, match="weights has 1 values for 2 rewards"):
        of_parts([1.0, 0, 1, 0], [0.0, 1, 0, 1], weights=(1.0,))


def test_loss_is_averaged_over_a_completion(completion_loss):
    assert completion_loss(NEW, WORTH, MASK, OLD)[0].tolist() == pytest.approx([-2.2, 0.8])
