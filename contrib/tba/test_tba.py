from types import SimpleNamespace

import pytest
import torch
from posttrain_testkit.by_hand import MASK, tensor

NEW = tensor([-1.0, -2.0], [-0.5, 0.0])
REFERENCE = tensor([-2.0, -2.0], [-1.0, 0.0])


def test_by_hand(call_loss):
    """Log-ratios 1 and 0.5, rewards 2 and 1 at beta 2: brackets 0.25 + 1 - 1 and 0.25 + 0.5 - 0.5."""
    columns = {"advantages": tensor(2.0, 1.0), "log_z": tensor(0.25, 0.25)}
    loss, metrics = call_loss(NEW, columns=columns, reference=REFERENCE, beta=2.0, mask=MASK)
    assert loss.tolist() == pytest.approx([0.0625, 0.0625])
    assert metrics["kl"].tolist() == [1, 0.5]


def test_the_partition_function_is_the_groups_mean(method):
    """Group 0: means of 2 - 1 and 0 - 0.5; group 1 alone: 5 - 0."""
    logps = {"policy": [-1.0, -0.5, -3.0], "reference": [-2.0, -1.0, -3.0]}

    class Models:
        def logps(self, sequences, model="policy"):
            return [tensor(value) for value in logps[model]]

    examples = [
        SimpleNamespace(sequences={"completion": [None]}, columns={"advantages": reward, "group": group})
        for reward, group in ((2.0, 0.0), (0.0, 0.0), (5.0, 1.0))
    ]
    found = method.annotate(examples=examples, models=Models(), config=method.config({"beta": 1.0}), state={})
    assert found["log_z"].tolist() == pytest.approx([0.25, 0.25, 5])


def test_at_the_optimum_nothing_is_left(call_loss):
    """p = p_ref exp(R / beta) / Z: log-ratios R / beta - log Z."""
    rewards = tensor(1.0, -2.0)
    new = REFERENCE.clone()
    new[:, 0] += rewards / 0.5 - 0.7
    columns = {"advantages": rewards, "log_z": torch.full((2,), 0.7, dtype=torch.float64)}
    assert call_loss(new, columns=columns, reference=REFERENCE, beta=0.5, mask=MASK)[
        0
    ].abs().max().item() == pytest.approx(0, abs=1e-12)
