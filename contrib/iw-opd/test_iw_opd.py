"""Importance-weighted on-policy distillation against numbers worked by hand and the golden values."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from posttrain.errors import SettingsError
from posttrain.methods import load
from posttrain.views import Batch, Step, View, Views
from posttrain_testkit.goldens.compare import evaluate

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "online.json"
METHOD = load(str(HERE))
D = torch.float64


def loss_of(new, columns, reference=None, step=None, **options):
    mask = torch.ones_like(new, dtype=torch.bool)
    view = View(new, mask, entropy=torch.ones_like(new))
    return METHOD.loss(
        batch=Batch(len(new), columns),
        policy=Views(completion=view),
        reference=None if reference is None else Views(completion=View(reference, mask)),
        config=METHOD.config(options),
        step=Step(0, 1) if step is None else step,
    )


def advantages(sampled, teacher, mask=None, **options):
    sampled, teacher = torch.tensor(sampled, dtype=D), torch.tensor(teacher, dtype=D)
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


def test_loss_is_the_score_function():
    new = torch.tensor([[-1.0, -2.0]], dtype=D, requires_grad=True)
    columns = {"advantages": torch.tensor([[0.5, -1.0]], dtype=D), "teacher_logps": new.detach() - 0.25}
    loss, metrics = loss_of(new, columns)
    assert loss.values[0].tolist() == [0.5, -2]
    loss.values.sum().backward()
    assert new.grad[0].tolist() == [-0.5, 1]
    assert metrics["reverse_kl"].values[0].tolist() == [0.25, 0.25]


def test_a_negative_weight_is_refused():
    with pytest.raises(SettingsError, match=r"early_weight is -0\.5, expected 0 or more"):
        METHOD.config({"early_weight": -0.5})


def test_goldens():
    results = evaluate(GOLDENS, "iw-opd", [str(HERE)])
    assert {one.status for one in results} == {"equal"}, [one.line() for one in results]
    assert [one.quantity for one in results[0].comparisons] == ["loss", "advantages", "grad_logp_new"]
