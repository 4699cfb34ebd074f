from types import SimpleNamespace

import pytest
import torch
from posttrain.errors import SettingsError
from posttrain_testkit.by_hand import method_beside, tensor

METHOD = method_beside(__file__)


def advantages(sampled, teacher, mask=None, **options):
    sampled, teacher = torch.tensor(sampled, dtype=torch.float64), torch.tensor(teacher, dtype=torch.float64)
    mask = torch.ones_like(sampled, dtype=torch.bool) if mask is None else torch.tensor(mask)
    rollouts = SimpleNamespace(sampled_logps=sampled, teacher_logps=teacher, mask=mask)
    return METHOD.advantages(rewards=sampled[:, 0], rollouts=rollouts, config=METHOD.config(options), state={})


def test_earlier_disagreement_weighs_more():
    """Gaps 1, -2, 1: before them 0, 1/4, 3/4 of the disagreement; weights 1.5, 1.375, 1.125."""
    found = advantages([[-2.0, -1.0, -3.0]], [[-1.0, -3.0, -2.0]])
    assert found["weight"][0].tolist() == pytest.approx([1.5, 1.375, 1.125])
    assert found["advantages"][0].tolist() == pytest.approx([1.5, -2.75, 1.125])


def test_padding_counts_for_nothing():
    found = advantages([[-2.0, -9.0]], [[-1.0, 5.0]], [[True, False]])
    assert found["advantages"][0].tolist() == pytest.approx([1.5, 0.0])


def test_agreement_teaches_nothing():
    assert advantages([[-2.0, -1.0]], [[-2.0, -1.0]])["advantages"].abs().max() == 0


def test_loss_is_the_score_function(call_loss):
    new = torch.tensor([[-1.0, -2.0]], dtype=torch.float64, requires_grad=True)
    columns = {"advantages": tensor([0.5, -1.0]), "teacher_logps": new.detach() - 0.25}
    loss, metrics = call_loss(new, columns=columns)
    assert loss.values[0].tolist() == [0.5, -2]
    loss.values.sum().backward()
    assert new.grad[0].tolist() == [-0.5, 1]
    assert metrics["reverse_kl"].values[0].tolist() == [0.25, 0.25]


def test_a_negative_weight_is_refused():
    with pytest.raises(SettingsError, match=r"early_weight is -0\.5, expected 0 or more"):
        METHOD.config({"early_weight": -0.5})
