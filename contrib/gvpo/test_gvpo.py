from types import SimpleNamespace

import pytest
import torch
from posttrain_testkit.by_hand import MASK, tensor

D = torch.float64


NEW = tensor([-1.0, -2.0], [-0.5, 0.0])
OLD = tensor([-2.0, -2.0], [-0.5, 0.0])
COLUMNS = {
    "advantages": tensor(0.5, -0.5),
    "old_logps": OLD,
    "group_log_ratio": tensor(0.5, 0.5),
}


def test_by_hand(call_loss):
    """Log-ratios 1 and 0, mean 0.5: 0.2 * 0.5 - 0.5 and 0.2 * -0.5 + 0.5, squared, over 0.4."""
    loss, metrics = call_loss(NEW, columns=COLUMNS, beta=0.2, mask=MASK)
    assert loss.tolist() == pytest.approx([0.4, 0.4])
    assert metrics["log_ratio"].tolist() == [1, 0]


def test_holding_the_mean_constant_changes_no_gradient(call_loss):
    """Against the loss of the group with the mean inside."""
    held, free = NEW.clone().requires_grad_(), NEW.clone().requires_grad_()
    call_loss(held, columns=COLUMNS, beta=0.2, mask=MASK)[0].sum().backward()
    ratio = (free - OLD).sum(1)
    (((ratio - ratio.mean()) * 0.2 - COLUMNS["advantages"]).square() / 0.4).sum().backward()
    assert torch.allclose(held.grad[MASK], free.grad[MASK])


def test_at_the_optimum_nothing_is_left(call_loss):
    """Log-ratios that differ by (R - mean) / beta."""
    new = OLD.clone()
    new[:, 0] += COLUMNS["advantages"] / 0.2 + 0.3
    columns = COLUMNS | {"group_log_ratio": torch.full((2,), 0.3, dtype=D)}
    assert call_loss(new, columns=columns, beta=0.2, mask=MASK)[0].max() < 1e-20


def test_the_mean_of_the_group(method):
    """Log-ratios 1 and 0 in one group, 2 alone; before any update they are all 0."""

    class Models:
        def logps(self, sequences, model="policy"):
            return [tensor(value) for value in (-1.0, -1.0, -1.0)]

    def examples(old):
        return [
            SimpleNamespace(
                sequences={
                    "completion": [SimpleNamespace(per_token={} if old is None else {"old_logps": old[i : i + 1]})]
                },
                columns={"group": group},
            )
            for i, group in enumerate((0.0, 0.0, 1.0))
        ]

    old, config = tensor(-2.0, -1.0, -3.0), method.config({})
    found = method.annotate(examples=examples(old), models=Models(), config=config, state={})
    assert found["group_log_ratio"].tolist() == [0.5, 0.5, 2]
    found = method.annotate(examples=examples(None), models=Models(), config=config, state={})
    assert found["group_log_ratio"].tolist() == [0, 0, 0]
