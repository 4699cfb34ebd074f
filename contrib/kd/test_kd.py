import math

import pytest
import torch
from posttrain.contract.views import View, Views
from posttrain.errors import SettingsError
from posttrain_testkit.by_hand import method_beside, tensor

METHOD = method_beside(__file__)
#: Teacher (3/4, 1/4), student (1/4, 3/4), as logits; the constants must not matter.
TEACHER = tensor([0.75, 0.25]).log() + 2.0
STUDENT = tensor([0.25, 0.75]).log() - 1.0


def statistics(student, teacher, labels=(0,), **options):
    labels = torch.tensor(labels)
    return METHOD.token_statistics(logits=student, labels=labels, teacher_logits=teacher, config=METHOD.config(options))


def test_divergence_by_hand():
    """At T = 1: 3/4 ln 3 + 1/4 ln 1/3 = ln 3 / 2. At T = 2 the logits' distances ln 3 halve: teacher (w, 1 - w) with
    w = sqrt(3) / (1 + sqrt(3)) = 0.633975, and (2 w - 1) ln 3 / 2 = 0.147186."""
    assert statistics(STUDENT, TEACHER, softness=1.0)["divergence"].item() == pytest.approx(math.log(3) / 2)
    assert statistics(STUDENT, TEACHER, softness=2.0)["divergence"].item() == pytest.approx(0.147186, abs=1e-6)


def test_agreement_is_of_the_likeliest_tokens():
    assert statistics(STUDENT, TEACHER)["agreement"].item() == 0
    assert statistics(STUDENT, STUDENT + 3)["agreement"].item() == 1


def test_loss_is_weighted():
    """kd_rate 1/4, T = 2: 3/4 of 0.5 nats, and 1/4 * 4 * 0.2."""
    mask = torch.tensor([[True, False]])
    view = View(tensor([-0.5, 0.0]), mask, divergence=tensor([0.2, 9.0]), agreement=mask)
    config = METHOD.config({"kd_rate": 0.25, "softness": 2.0})
    terms, _ = METHOD.loss(batch=None, policy=Views(completion=view), reference=None, config=config, step=None)
    assert terms["ce"].values[0, 0].item() == pytest.approx(0.375)
    assert terms["kd"].values[0, 0].item() == pytest.approx(0.2)


@pytest.mark.parametrize(("option", "value"), [("kd_rate", 1.5), ("softness", 0.0)])
def test_values_out_of_range_are_refused(option, value):
    with pytest.raises(SettingsError, match=f"{option} is {value}, expected"):
        METHOD.config({option: value})
