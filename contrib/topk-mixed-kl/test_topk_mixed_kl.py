import math

import pytest
import torch
from posttrain.errors import SettingsError
from posttrain_testkit.by_hand import method_beside, tensor

METHOD = method_beside(__file__)
#: Teacher (3/4, 1/4), student (1/4, 3/4), as logits; the constants must not matter.
TEACHER = tensor([0.75, 0.25]).log() + 2.0
STUDENT = tensor([0.25, 0.75]).log() - 1.0


def statistics(student, teacher, labels=(0,), **options):
    labels = torch.tensor(labels)
    return METHOD.token_statistics(logits=student, labels=labels, teacher_logits=teacher, config=METHOD.config(options))


def test_one_token_by_hand():
    """The teacher's likeliest token has p = 3/4, s = 1/4: w 3/4 ln 3 - (1 - w) 1/4 ln 3."""
    for weight in (0.0, 0.25, 1.0):
        found = statistics(STUDENT, TEACHER, topk=1, mixed_kl_weight=weight)
        assert found["divergence"].item() == pytest.approx((weight * 0.75 - (1 - weight) * 0.25) * math.log(3))
        assert found["topk_mass"].item() == pytest.approx(0.25)


def test_the_whole_vocabulary_is_the_mean_of_both_directions():
    """(9/10, 1/10) and (1/2, 1/2): half of 0.368064 and 0.510826; more tokens than there are is all of them."""
    p, s = tensor([0.9, 0.1]).log(), torch.zeros(1, 2, dtype=torch.float64)
    assert statistics(s, p)["divergence"].item() == pytest.approx(0.439445, abs=1e-6)


def test_gradient_equals_finite_differences():
    student, teacher = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def divergence(logits):
        return statistics(logits, teacher, topk=2, mixed_kl_weight=0.3)["divergence"]

    assert torch.autograd.gradcheck(divergence, (student.requires_grad_(),))


@pytest.mark.parametrize(("option", "value"), [("topk", 0), ("mixed_kl_weight", 1.5)])
def test_values_out_of_range_are_refused(option, value):
    with pytest.raises(SettingsError, match=f"{option} is {value}, expected"):
        METHOD.config({option: value})
