from types import SimpleNamespace

import pytest
import torch
from posttrain.contract.views import View, Views
from posttrain_testkit.by_hand import call_loss, method_beside, tensor

METHOD = method_beside(__file__)
D = torch.float64

#: Teacher (3/4, 1/4), student (1/4, 3/4), as logits; the constants must not matter.
TEACHER = tensor([0.75, 0.25]).log() + 2.0
STUDENT = tensor([0.25, 0.75]).log() - 1.0


def statistics(student, teacher, labels=None, alignment=None, **options):
    labels = torch.zeros(len(student), dtype=torch.long) if labels is None else labels
    config = METHOD.config(options)
    return METHOD.token_statistics(
        logits=student, labels=labels, teacher_logits=teacher, alignment=alignment, config=config
    )


def loss_of(new, columns, statistics=None, mask=None, **options):
    mask = torch.ones_like(new, dtype=torch.bool) if mask is None else mask
    found = {"entropy": torch.ones_like(new)} | (statistics or {})
    return call_loss(METHOD, Views(completion=View(new, mask, **found)), columns=columns, **options)


def test_only_the_order_counts():
    """(3/4, 1/4) and (1/4, 3/4) are the same when sorted; (9/10, 1/10) and (1/2, 1/2) are 0.4 apart twice."""
    assert statistics(STUDENT, TEACHER)["distance"].item() == pytest.approx(0, abs=1e-12)
    p, s = tensor([0.9, 0.1]).log(), torch.zeros(1, 2, dtype=D)
    assert statistics(s, p)["distance"].item() == pytest.approx(0.8)


def test_a_smaller_vocabulary_is_filled_up():
    """(1/2, 1/2) against (1/2, 1/4, 1/4): 0 + 1/4 + 1/4."""
    p, s = tensor([0.5, 0.25, 0.25]).log(), torch.zeros(1, 2, dtype=D)
    assert statistics(s, p)["distance"].item() == pytest.approx(0.5)


def test_partners_stand_at_the_same_place_of_the_same_span():
    """Spans 0 0 1 2 and 0 1 1 2 2: the second token of span 0 has no partner, those of the others are 0, 1, 3."""
    alignment = SimpleNamespace(student_spans=torch.tensor([0, 0, 1, 2]), teacher_spans=torch.tensor([0, 1, 1, 2, 2]))
    student = torch.zeros(4, 2, dtype=D)
    teacher = tensor([0.5, 0.5], [0.9, 0.1], [0.5, 0.5], [0.6, 0.4], [1.0, 1e-9]).log()
    found = statistics(student, teacher, alignment=alignment)
    assert found["compared"].tolist() == [1, 0, 1, 1]
    assert found["distance"].tolist() == pytest.approx([0, 0, 0.8, 0.2])


def test_both_terms_and_both_means():
    new, mask = tensor([-1.0, -2.0], [-3.0, 0.0]), torch.tensor([[True, True], [True, False]])
    numbers = {"distance": tensor([0.2, 0.4], [0.6, 9.0]), "compared": torch.ones(2, 2, dtype=D)}
    loss, _ = loss_of(new, {}, numbers, mask)
    assert loss.tolist() == pytest.approx([1.5 + 1.5 * 0.3, 3 + 0.9])
    loss, _ = loss_of(new, {}, numbers, mask, aggregation="token", ce_weight=0.0)
    assert loss.values[mask].tolist() == pytest.approx([0.3, 0.6, 0.9])
