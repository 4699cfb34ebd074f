"""On-policy self-distillation against numbers worked by hand and the golden values."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from posttrain.errors import SettingsError
from posttrain.methods import load
from posttrain_testkit.goldens.compare import evaluate

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "online.json"
METHOD = load(str(HERE))
D = torch.float64
#: Teacher (3/4, 1/4), student (1/4, 3/4), as logits; the constants must not matter.
TEACHER = torch.tensor([[0.75, 0.25]], dtype=D).log() + 2.0
STUDENT = torch.tensor([[0.25, 0.75]], dtype=D).log() - 1.0


def statistics(student, teacher, labels=(0,), **options):
    labels = torch.tensor(labels)
    return METHOD.token_statistics(logits=student, labels=labels, teacher_logits=teacher, config=METHOD.config(options))


@pytest.mark.parametrize(
    ("divergence", "expected"), [("forward_kl", 0.368064), ("reverse_kl", 0.510826), ("jsd", 0.101751)]
)
def test_divergence_by_hand(divergence, expected):
    """Teacher (9/10, 1/10), student (1/2, 1/2), m = (7/10, 3/10): jsd is half of 9/10 ln 9/7 + 1/10 ln 1/3 = 0.116321
    and of 1/2 ln 5/7 + 1/2 ln 5/3 = 0.087177."""
    p, s = torch.tensor([[0.9, 0.1]], dtype=D).log(), torch.zeros(1, 2, dtype=D)
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


def test_goldens():
    results = evaluate(GOLDENS, "opsd", [str(HERE)])
    assert {one.status for one in results} == {"equal"}, [one.line() for one in results]
    assert [one.quantity for one in results[0].comparisons] == ["loss", "grad_student_logits"]
