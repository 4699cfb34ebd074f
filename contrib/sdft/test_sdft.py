import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from posttrain import api
from posttrain.contract.views import Batch, Step, View, Views
from posttrain.errors import DataError, SettingsError
from posttrain_testkit.by_hand import method_beside, tensor
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer

HERE = Path(__file__).parent
METHOD = method_beside(__file__)
#: Student (1/2, 1/4, 1/8, 1/8), teacher (1/10, 6/10, 2/10, 1/10); the student's two likeliest are the first two.
STUDENT = tensor([0.5, 0.25, 0.125, 0.125]).log() + 3
TEACHER = tensor([0.1, 0.6, 0.2, 0.1]).log() - 5
MASK = torch.tensor([[True, True, True], [True, False, False]])


def divergence(student=STUDENT, teacher=TEACHER, **options):
    labels = torch.zeros(len(student), dtype=torch.long)
    found = METHOD.token_statistics(
        logits=student, labels=labels, teacher_logits=teacher, config=METHOD.config(options)
    )
    return found["divergence"]


def loss_of(old_gap=0.0, **options):
    """Divergences 1, 2, 3 of an answer of three tokens and 4 of one; l lies ``old_gap`` above o."""
    logps = torch.full((2, 3), -1.0, dtype=torch.float64)
    values = tensor([1.0, 2.0, 3.0], [4.0, 99.0, 99.0])
    view = View(logps, MASK, divergence=values, entropy=values)
    batch = Batch(2, {"old_logps": logps - old_gap})
    return METHOD.loss(
        batch=batch, policy=Views(completion=view), reference=None, config=METHOD.config(options), step=Step(0, 1)
    )


def test_likeliest_tokens_by_hand():
    """Of two: s = (2/3, 1/3), p = (1/7, 6/7). KL(s || p) = 2/3 ln 14/3 + 1/3 ln 7/18 = 0.712143, and
    KL(p || s) = 1/7 ln 3/14 + 6/7 ln 18/7 = 0.589475."""
    assert divergence(topk=2, alpha=1.0).item() == pytest.approx(0.712143, abs=1e-6)
    assert divergence(topk=2, alpha=0.0).item() == pytest.approx(0.589475, abs=1e-6)


def test_the_rest_as_one_token():
    """s = (1/2, 1/4, 1/4), p = (0.1, 0.6, 0.3): 1/2 ln 5 + 1/4 ln 5/12 + 1/4 ln 5/6 = 0.540271."""
    assert divergence(topk=2, add_tail=True, alpha=1.0).item() == pytest.approx(0.540271, abs=1e-6)


def test_the_whole_vocabulary():
    """1/2 ln 5 + 1/4 ln 5/12 + 1/8 ln 5/8 + 1/8 ln 5/4 = 0.554994; the same for as many likeliest tokens as exist."""
    assert divergence(mode="full_logits", alpha=1.0).item() == pytest.approx(0.554994, abs=1e-6)
    for tail in (False, True):
        assert divergence(topk=100, add_tail=tail, alpha=1.0).item() == pytest.approx(0.554994, abs=1e-6)


@pytest.mark.parametrize("options", [{"topk": 3}, {"topk": 3, "add_tail": True}, {"mode": "full_logits"}])
@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_gradient_equals_finite_differences(options, alpha):
    student, teacher = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(7), dtype=torch.float64)

    def total(logits):
        return divergence(logits, teacher, alpha=alpha, **options)

    assert torch.autograd.gradcheck(total, (student.requires_grad_(),))


@pytest.mark.parametrize("options", [{"topk": 3}, {"topk": 3, "add_tail": True}, {"mode": "full_logits"}])
def test_certain_models_stay_finite(options):
    """float32, logits up to 1e4: all of the student's probability lies on one token, that of the rest rounds to 0."""
    logits = (1e4 * torch.randn(5, 9, generator=torch.Generator().manual_seed(1))).requires_grad_()
    for teacher in (logits.detach(), logits.detach().flip(1)):
        found = divergence(logits, teacher, **options)
        (gradient,) = torch.autograd.grad(found.sum(), logits)
        assert found.isfinite().all()
        assert gradient.isfinite().all()
    assert divergence(logits, logits.detach(), **options).abs().max() < 1e-6


def test_mean_over_tokens_then_answers():
    """(1 + 2 + 3) / 3 and 4, one value an answer."""
    loss, metrics = loss_of()
    assert loss.tolist() == pytest.approx([2, 4])
    assert metrics["divergence"].values[MASK].tolist() == [1, 2, 3, 4]
    assert metrics["weight"].values[MASK].tolist() == [1, 1, 1, 1]


def test_first_tokens_are_left_out():
    """Without the first: (2 + 3) / 2, and nothing of an answer of one token, which costs 0."""
    assert loss_of(skip_first_tokens=1)[0].tolist() == pytest.approx([2.5, 0])
    assert loss_of(skip_first_tokens=9)[0].tolist() == [0, 0]


def test_weight_of_tokens_that_became_likelier():
    """exp(l - o): 3/2 is taken, 5 is cut at 2, 1/4 is taken; without the factor nothing changes."""
    for ratio, weight in ((1.5, 1.5), (5.0, 2.0), (0.25, 0.25)):
        loss, metrics = loss_of(math.log(ratio))
        assert loss.tolist() == pytest.approx([2 * weight, 4 * weight])
        assert metrics["weight"].values[MASK].tolist() == pytest.approx([weight] * 4)
        assert loss_of(math.log(ratio), importance_clip=0.0)[0].tolist() == pytest.approx([2, 4])


def teacher_prompts(prompts, shown, **options):
    rollouts = SimpleNamespace(prompts=prompts, columns={"privileged_context": shown})
    config = METHOD.config(options)
    return METHOD.teacher_prompts(rollouts=rollouts, rewards=torch.zeros(len(prompts)), config=config, state={})


def test_the_demonstration_stands_in_the_prompt():
    (found,) = teacher_prompts(["2 + 3?"], ["It is 5."])
    assert found.startswith("2 + 3?\n\n")
    assert "\n\nIt is 5.\n\n" in found
    assert teacher_prompts(["q"], ["{d}"], template="{privileged_context} | {prompt}") == ["{d} | q"]


def test_of_messages_the_last_question_is_reworded():
    asked = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": [{"type": "text", "text": "2 + 3?"}]},
    ]
    before = [dict(one) for one in asked]
    (found,) = teacher_prompts(
        [asked], [[{"role": "assistant", "content": "5"}]], template="{prompt} ({privileged_context})"
    )
    assert found == [*before[:3], {"role": "user", "content": "2 + 3? (5)"}]
    assert asked == before


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{prompt}", r"template has no \{privileged_context\}"),
        (
            "{prompt} {privileged_context} {other}",
            "braces around something other than {prompt} and {privileged_context}",
        ),
        ("{prompt} {privileged_context} {", "Write a brace of the text itself twice"),
    ],
)
def test_a_template_without_its_places_is_refused(template, text):
    with pytest.raises(SettingsError, match=text):
        METHOD.config({"template": template})


@pytest.mark.parametrize("option", [{"alpha": 1.5}, {"topk": 0}, {"skip_first_tokens": -1}, {"importance_clip": -1.0}])
def test_values_out_of_range_are_refused(option):
    (name,) = option
    with pytest.raises(SettingsError, match=rf"{name} is .*expected"):
        METHOD.config(option)


def train(tmp_path, **keywords):
    rows = [{"prompt": "ab", "privileged_context": "cab"}, {"prompt": "b", "privileged_context": "aa"}]
    objects = {"model": tiny_model(), "tokenizer": tiny_tokenizer(), "data": rows}
    usual = {"batch_size": 2, "steps": 3, "max_new_tokens": 5, "progress": "quiet", "cache": "off", "device": "cpu"}
    return api.train(str(HERE), output=str(tmp_path / "run"), **(objects | usual | keywords))


def test_a_demonstration_that_says_nothing_teaches_nothing(tmp_path):
    """With a template under which the teacher's prompt is the student's own, base, live and average teachers start at
    a divergence of 0, and the frozen start stays away from a student that other steps would move."""
    rows = [{"prompt": "ab", "privileged_context": ""}]
    for teacher in ("base", "live", "average"):
        run = train(
            tmp_path / teacher, data=rows, template="{prompt}{privileged_context}", teacher_model=teacher, steps=1
        )
        assert run.metrics[0]["loss"] == pytest.approx(0, abs=1e-6)
    assert train(tmp_path / "told", steps=1).metrics[0]["loss"] > 1e-3


def test_rows_without_a_demonstration_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"data row 2: column 'privileged_context' is missing"):
        train(tmp_path, data=[{"prompt": "a", "privileged_context": "b"}, {"prompt": "a", "privileged_context": None}])


def test_truncated_answers_may_be_left_out(tmp_path):
    """The teacher's longer sequences lose their tokens together with the student's."""
    run = train(tmp_path, mask_truncated=True, max_new_tokens=2, group_size=8)
    assert run.metrics[0]["truncated_share"] > 0
    assert math.isfinite(run.metrics[-1]["loss"])
