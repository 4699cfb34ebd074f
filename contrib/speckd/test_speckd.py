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


def test_acceptance_by_rank():
    """The teacher ranks the tokens 2, 0, 1: a proposal of rank r is accepted from topk = r + 1 on."""
    teacher = tensor([1.0, 0.0, 2.0])
    student = tensor([0.0, 9.0, 0.0])
    for label, rank in ((2, 0), (0, 1), (1, 2)):
        found = [statistics(student, teacher, [label], topk=k)["accepted"].item() for k in (1, 2, 3)]
        assert found == [float(rank < k) for k in (1, 2, 3)]
    assert statistics(student, teacher, [2], topk=2, proposal="likeliest")["accepted"].item() == 0


def test_divergence_is_forward():
    """Teacher (9/10, 1/10), student (1/2, 1/2): KL(p || s) = 0.368064."""
    p, s = tensor([0.9, 0.1]).log(), torch.zeros(1, 2, dtype=torch.float64)
    assert statistics(s, p)["divergence"].item() == pytest.approx(0.368064, abs=1e-6)


def test_rejected_tokens_count_less():
    mask = torch.tensor([[True, True, False]])
    numbers = tensor([0.5, 0.25, 7.0])
    view = View(-numbers, mask, divergence=numbers, entropy=numbers, accepted=tensor([1.0, 0.0, 1.0]))
    for weight in (0.0, 0.2):
        config = METHOD.config({"rejected_weight": weight})
        loss, _ = METHOD.loss(batch=None, policy=Views(completion=view), reference=None, config=config, step=None)
        assert loss.mask is mask
        assert loss.values[mask].tolist() == [0.5, 0.25 * weight]


def test_no_token_is_refused():
    with pytest.raises(SettingsError, match="topk is 0, expected a number of tokens from 1"):
        METHOD.config({"topk": 0})
