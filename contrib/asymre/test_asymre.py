from types import SimpleNamespace

import torch
from posttrain_testkit.by_hand import MASK, method_beside, tensor

METHOD = method_beside(__file__)


def worked_out(rewards, group, **options):
    rollouts = SimpleNamespace(group=torch.tensor(group))
    config = METHOD.config(options)
    return METHOD.advantages(
        rewards=torch.tensor(rewards, dtype=torch.float64), rollouts=rollouts, config=config, state={}
    ).tolist()


def test_the_baseline_is_shifted():
    assert worked_out([1.0, 0.0, 3.0], [0, 0, 1], baseline_shift=-0.25) == [0.75, -0.25, 0.25]
    assert worked_out([1.0, float("nan")], [0, 0], baseline_shift=-0.25) == [0.25, 0]


def test_loss_needs_no_ratio(call_loss):
    new = torch.tensor([[-1.0, -2.0], [-0.5, 0.0]], dtype=torch.float64, requires_grad=True)
    loss, _ = call_loss(new, columns={"advantages": tensor(0.5, -1.0)}, mask=MASK)
    assert loss.mask is MASK
    assert loss.values[MASK].tolist() == [0.5, 1, -0.5]
    loss.values[MASK].sum().backward()
    assert new.grad.tolist() == [[-0.5, -0.5], [1, 0]]
