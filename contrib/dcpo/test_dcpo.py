import math
from functools import partial

import pytest
import torch
from posttrain_testkit.by_hand import advantages_of, method_beside, tensor

METHOD = method_beside(__file__)
advantages = partial(advantages_of, METHOD)
D = torch.float64


def of_prompt(rewards, state, prompt="one"):
    return advantages(rewards, [0] * len(rewards), state=state, prompts=[prompt] * len(rewards))[0].tolist()


def test_a_new_prompt_is_standardised_by_its_group():
    assert of_prompt([1, 0, 1], {}) == pytest.approx([0.577350, -1.154701, 0.577350], abs=1e-6)
    assert of_prompt([0.1, 0.1, 0.1], {}) == [0, 0, 0]


def test_a_prompt_is_remembered():
    """First 1, 0: mean 1/2, variance 1/2. Then 1, 1, alone worth nothing: of both, mean 3/4 and variance (1/2 + 1/2 *
    1/4) / 2 = 5/16, so 1 lies 0.25 / 0.559017 = 0.447214 above, and half of that is the nearer one either way."""
    state = {}
    of_prompt([1, 0], state)
    assert of_prompt([1, 1], state) == pytest.approx([0.223607, 0.223607], abs=1e-6)
    assert state["history"]["one"] == {"steps": 2, "mean": 0.75, "std": pytest.approx(0.559017, abs=1e-6)}
    assert of_prompt([1, 1], state, [{"role": "user", "content": "two"}]) == [0, 0]


def test_bounds_by_hand(completion_loss):
    """At p = 1: low (1 + sqrt 0.36) / 2 = 0.8, high (1 + sqrt 1.8) / 2 = 1.170820. At p = 0.1: low 0.5 and high 2."""
    old, far = tensor([0.0, math.log(0.1)], [0.0, 0.0]), math.log(20)
    count = torch.full((2,), 1.0, dtype=D)
    everything = torch.ones(2, 2, dtype=torch.bool)
    up, _ = completion_loss(old + far, torch.ones(2, dtype=D), everything, old, completions=count)
    down, _ = completion_loss(old - far, -torch.ones(2, dtype=D), everything, old, completions=count)
    assert up.tolist() == pytest.approx([-(1.170820 + 2) / 2, -1.170820], abs=1e-6)
    assert down.tolist() == pytest.approx([(0.8 + 0.5) / 2, 0.8])
    bad, _ = completion_loss(old + far, -torch.ones(2, dtype=D), everything, old, completions=2 * count)
    assert bad.tolist() == pytest.approx([6, 6])  # three advantages each, times two completions
