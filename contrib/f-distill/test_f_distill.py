import math
from random import Random

import pytest
import torch
from posttrain import SampleRequest
from posttrain_testkit.by_hand import method_beside, tensor

METHOD = method_beside(__file__)
#: Teacher (3/4, 1/4), student (1/4, 3/4), as logits; the constants must not matter.
TEACHER = tensor([0.75, 0.25]).log() + 2.0
STUDENT = tensor([0.25, 0.75]).log() - 1.0


def statistics(student, teacher, labels=(0,), **options):
    labels = torch.tensor(labels)
    return METHOD.token_statistics(logits=student, labels=labels, teacher_logits=teacher, config=METHOD.config(options))


@pytest.mark.parametrize(
    ("divergence", "expected"),
    [
        ("total_variation", 0.5),
        ("js", 0.130812),  # 3/4 ln 3/2 + 1/4 ln 1/2 from both sides
        ("forward_kl", math.log(3) / 2),
        ("reverse_kl", math.log(3) / 2),
    ],
)
def test_divergence_by_hand(divergence, expected):
    found = statistics(STUDENT, TEACHER, divergence=divergence)["divergence"].item()
    assert found == pytest.approx(expected, abs=1e-6)


def test_directions():
    """Teacher (9/10, 1/10), student (1/2, 1/2): KL(p || s) = 0.368064 and KL(s || p) = 0.510826."""
    p, s = tensor([0.9, 0.1]).log(), torch.zeros(1, 2, dtype=torch.float64)
    assert statistics(s, p, divergence="forward_kl")["divergence"].item() == pytest.approx(0.368064, abs=1e-6)
    assert statistics(s, p, divergence="reverse_kl")["divergence"].item() == pytest.approx(0.510826, abs=1e-6)


def plan(count, **options):
    return METHOD.plan_rollouts(
        prompts=[{}] * count, group_size=2, config=METHOD.config(options), state={}, random=Random(1)
    )


def test_each_prompt_is_answered_by_one_of_them():
    assert plan(2, student_share=1.0) == [[SampleRequest(2)]] * 2
    assert plan(2, student_share=0.0) == [[SampleRequest(2, source="teacher")]] * 2
    drawn = plan(1000)
    assert sum(one[0].source == "policy" for one in drawn) == pytest.approx(500, abs=70)
