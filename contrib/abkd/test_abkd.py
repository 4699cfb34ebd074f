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


def test_by_hand():
    """Exponents 1 and 1: -(2 * 3/16 - 1/2 * 10/16 * 2) = 10/16 - 6/16 = 1/4, half the squared distance."""
    assert statistics(STUDENT, TEACHER, alpha=1.0, beta=1.0)["divergence"].item() == pytest.approx(0.25)


def test_halves_are_the_hellinger_distance():
    """-4 (2 * sqrt(3)/4 - 1) = 4 - 2 sqrt(3)."""
    found = statistics(STUDENT, TEACHER, alpha=0.5, beta=0.5)["divergence"].item()
    assert found == pytest.approx(4 - 2 * math.sqrt(3))


def test_the_limits_are_the_two_directions():
    """Teacher (9/10, 1/10), student (1/2, 1/2): KL(p || s) = 0.368064 and KL(s || p) = 0.510826."""
    p, s = tensor([0.9, 0.1]).log(), torch.zeros(1, 2, dtype=torch.float64)
    assert statistics(s, p, alpha=1.0, beta=1e-6)["divergence"].item() == pytest.approx(0.368064, abs=1e-5)
    assert statistics(s, p, alpha=1e-6, beta=1.0)["divergence"].item() == pytest.approx(0.510826, abs=1e-5)


def test_never_negative_and_zero_for_equal_models():
    random = torch.Generator().manual_seed(4)
    one, other = torch.randn(2, 50, 6, generator=random, dtype=torch.float64)
    assert (statistics(one, other, labels=[0] * 50)["divergence"] > 0).all()
    assert statistics(one, one, labels=[0] * 50)["divergence"].abs().max() < 1e-12


@pytest.mark.parametrize("option", ["alpha", "beta"])
def test_zero_is_refused(option):
    with pytest.raises(SettingsError, match=rf"{option} is 0\.0, expected a number above 0"):
        METHOD.config({option: 0.0})
