import math
from types import SimpleNamespace

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


@pytest.mark.parametrize(
    ("divergence", "expected"), [("forward_kl", 0.368064), ("reverse_kl", 0.510826), ("jsd", 0.101751)]
)
def test_divergence_by_hand(divergence, expected):
    """Teacher (9/10, 1/10), student (1/2, 1/2), m = (7/10, 3/10): jsd is half of 9/10 ln 9/7 + 1/10 ln 1/3 = 0.116321
    and of 1/2 ln 5/7 + 1/2 ln 5/3 = 0.087177."""
    p, s = tensor([0.9, 0.1]).log(), torch.zeros(1, 2, dtype=torch.float64)
    found = statistics(s, p, divergence=divergence)
    assert found["divergence"].item() == pytest.approx(expected, abs=3e-6)
    assert found["entropy"].item() == pytest.approx(math.log(2))


def test_the_teacher_sees_the_solution():
    rollouts = SimpleNamespace(prompts=["1 + 1 = ?"], columns={"completion": ["2"]})
    config = METHOD.config({"template": "{prompt} ({solution})"})
    found = METHOD.teacher_prompts(rollouts=rollouts, rewards=None, config=config, state={})
    assert found == ["1 + 1 = ? (2)"]
    with pytest.raises(SettingsError, match="template"):
        METHOD.config({"template": "{prompt} alone"})
