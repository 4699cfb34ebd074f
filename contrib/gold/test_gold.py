import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch
from posttrain_testkit.by_hand import tensor

HERE = Path(__file__).resolve().parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "online.json"
_SPEC = importlib.util.spec_from_file_location("posttrain_method_gold", HERE / "posttrain_method_gold" / "__init__.py")
gold = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(gold)
D = torch.float64
NOTHING = torch.empty(0, dtype=torch.long)


def ids(*values):
    return torch.tensor(values, dtype=torch.long)


def random_logits(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def distribution(logits, label_rows, spans, number, merge):
    """Probabilities of a span in plain Python: one distribution times the probabilities of the other tokens."""
    places = [place for place, span in enumerate(spans) if span == number]
    softmax = []
    for row in logits.tolist():
        total = sum(math.exp(value) for value in row)
        softmax.append([math.exp(value) / total for value in row])
    base = places[0] if merge == "observed" else places[-1]
    factor = math.prod(softmax[place][label_rows[place]] for place in places if place != base)
    return [value * factor for value in softmax[base]]


def brute_force(student, teacher, matched, beta, weights):
    """One span from two lists of probabilities."""
    close = 0.0
    for one, other in zip(*matched, strict=True):
        s, t = max(student[one], 1e-8), max(teacher[other], 1e-8)
        if beta == 0:
            close += t * math.log(t / s)
        elif beta == 1:
            close += s * math.log(s / t)
        else:
            m = beta * t + (1 - beta) * s
            close += beta * t * math.log(t / m) + (1 - beta) * s * math.log(s / m)
    rest = [
        sorted((p for i, p in enumerate(side) if i not in used), reverse=True)
        for side, used in ((student, matched[0]), (teacher, matched[1]))
    ]
    width = max(map(len, rest))
    filled = [side + [0.0] * (width - len(side)) for side in rest]
    return weights[0] * close + weights[1] * sum(abs(a - b) for a, b in zip(*filled, strict=True))


#: Five student tokens of 6, four teacher tokens of 7, in three spans of 1 to 3 tokens.
STUDENT = (random_logits(5, 6), ids(2, 0, 5, 1, 3), ids(0, 1, 1, 1, 2))
TEACHER = (random_logits(4, 7, seed=1), ids(6, 1, 0, 4), ids(0, 0, 1, 2))
MATCHED = (ids(0, 2, 3), ids(1, 6, 4))


@pytest.mark.parametrize("merge", ["observed", "bayesian"])
@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
def test_spans_of_several_tokens_in_plain_python(merge, beta):
    """P6. The weights are those of the vocabulary: 3 of the teacher's 7 tokens are shared."""
    found = gold.span_losses(*STUDENT, *TEACHER, MATCHED, gold.Config(beta=beta, merge=merge))
    matched = [one.tolist() for one in MATCHED]
    for number in range(3):
        student, teacher = (
            distribution(logits, labels.tolist(), spans.tolist(), number, merge)
            for logits, labels, spans in (STUDENT, TEACHER)
        )
        expected = brute_force(student, teacher, matched, beta, (3 / 7, 4 / 7))
        assert found[number].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("merge", ["observed", "bayesian"])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_gradient_equals_finite_differences(merge, beta):
    """Every token of a span has a gradient, those that only contribute a factor too; the teacher has none."""
    leaf = STUDENT[0].clone().requires_grad_()
    teacher = TEACHER[0].clone().requires_grad_()
    config = gold.Config(beta=beta, merge=merge)

    def losses(logits):
        return gold.span_losses(logits, *STUDENT[1:], teacher, *TEACHER[1:], MATCHED, config)

    assert torch.autograd.gradcheck(losses, (leaf,))
    losses(leaf).sum().backward()
    assert (leaf.grad.abs().sum(1) > 1e-6).all()
    assert teacher.grad is None


def test_the_text_as_it_stands_has_the_probability_of_the_span():
    """Two tokens against one: 1/2 * 1/4 under the student is what the teacher gives to its one token."""
    student = tensor([0.5, 0.5, 0.0], [0.25, 0.25, 0.5]).log()
    teacher = tensor([0.875, 0.125]).log()
    config = gold.Config(beta=1.0, matched_weight=1.0)
    found = gold.span_losses(student, ids(0, 1), ids(0, 0), teacher, ids(1), ids(0), (ids(0), ids(1)), config)
    assert found.tolist() == pytest.approx([0.0], abs=1e-12)


def test_equal_models_with_one_vocabulary_lose_nothing():
    """Sixteen tokens, all shared: the divergence of equal distributions is 0, and the other term has no token."""
    logits, labels = random_logits(4, 16), ids(3, 1, 15, 0)
    same = torch.arange(16)
    found = gold.span_losses(
        logits, labels, ids(0, 1, 2, 3), logits, labels, ids(0, 1, 2, 3), (same, same), gold.Config()
    )
    assert found.tolist() == pytest.approx([0.0] * 4, abs=1e-12)


def test_without_shared_tokens_only_ranks_count():
    """Teacher 0.7, 0.2, 0.1 and student 0.6, 0.4: |0.7 - 0.6| + |0.2 - 0.4| + 0.1 = 0.4, in any order."""
    student = tensor([0.4, 0.6]).log()
    teacher = tensor([0.1, 0.7, 0.2]).log()
    found = gold.span_losses(student, ids(0), ids(0), teacher, ids(0), ids(0), (NOTHING, NOTHING), gold.Config())
    assert found.tolist() == pytest.approx([0.4])


def test_a_span_of_one_side_alone_teaches_nothing():
    """The student's second token and the teacher's last one have no partner; nothing flows into their logits."""
    leaf = random_logits(3, 4).requires_grad_()
    args = (random_logits(3, 5, seed=2), ids(4, 0, 1))
    config = gold.Config(matched_weight=0.5)
    found = gold.span_losses(leaf, ids(0, 1, 2), ids(0, 1, 2), *args, ids(0, 2, 3), (ids(0), ids(1)), config)
    alone = gold.span_losses(
        leaf[[0, 2]], ids(0, 2), ids(0, 1), args[0][:2], args[1][:2], ids(0, 1), (ids(0), ids(1)), config
    )
    assert found[[1, 3]].tolist() == [0, 0]
    assert found[[0, 2]].tolist() == alone.tolist()
    found.sum().backward()
    assert leaf.grad[1].abs().sum() == 0
    assert (leaf.grad[[0, 2]].abs().sum(1) > 0).all()


def test_nothing_to_learn_from():
    """No token at all, and a student whose answer the teacher has no token for."""
    nobody = (torch.empty(0, 5, dtype=D), NOTHING, NOTHING)
    shared = (ids(0), ids(1))
    student = torch.empty(0, 4, dtype=D, requires_grad=True)
    assert gold.span_losses(student, NOTHING, NOTHING, *nobody, shared, gold.Config()).shape == (0,)
    found = gold.span_losses(random_logits(2, 4), ids(0, 1), ids(0, 1), *nobody, shared, gold.Config())
    assert found.tolist() == [0, 0]


def test_improbable_spans_stay_finite():
    """Forty tokens of probability e^-60 each: the product has no float of its own, the loss and its gradient do."""
    logits = torch.full((40, 3), 60.0, dtype=torch.float32)
    logits[:, 0] = 0
    leaf = logits.requires_grad_()
    spans = torch.zeros(40, dtype=torch.long)
    found = gold.span_losses(
        leaf, spans, spans, torch.zeros(1, 3), ids(0), ids(0), (ids(0, 1), ids(0, 1)), gold.Config()
    )
    found.sum().backward()
    assert found.isfinite().all()
    assert leaf.grad.isfinite().all()


def test_options_say_what_they_take():
    with pytest.raises(ValueError, match=r"beta is 1.5, expected a number from 0 to 1\."):
        gold.Config(beta=1.5)
    with pytest.raises(ValueError, match=r"on_policy_share is -0.1, expected a number from 0 to 1\."):
        gold.Config(on_policy_share=-0.1)


def test_spans_of_the_goldens():
    """Two answers of two tokens and of one: the mean over answers of the mean over their spans."""
    file = json.loads(GOLDENS.read_text())
    inputs, entry = file["_shared"]["distillation"], file["gold"]
    options = entry["hyperparameters"]
    config = gold.Config(options["beta"], "observed", options["matched_weight"], options["unmatched_weight"])
    shared = ids(*options["matched_ids"])
    rows, leaves = [], []
    for student, teacher, labels in zip(
        inputs["student_logits"], inputs["teacher_logits"], inputs["tokens"], strict=True
    ):
        leaves.append(torch.tensor(student, dtype=D, requires_grad=True))
        sides = (ids(*labels), torch.arange(len(labels)))
        rows.append(
            gold.span_losses(leaves[-1], *sides, torch.tensor(teacher, dtype=D), *sides, (shared, shared), config)
        )
    loss = torch.stack([row.mean() for row in rows]).mean()
    loss.backward()
    assert loss.item() == pytest.approx(entry["loss"], abs=2e-6)
    for leaf, expected in zip(leaves, entry["grad_student_logits"], strict=True):
        assert torch.allclose(leaf.grad, torch.tensor(expected, dtype=D), atol=2e-6)
