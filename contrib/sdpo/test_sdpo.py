import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from posttrain import api
from posttrain.contract.views import Batch, Step, View, Views
from posttrain.errors import SettingsError
from posttrain_testkit.by_hand import call_loss, method_beside, tensor
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer

HERE = Path(__file__).parent
METHOD = method_beside(__file__)
MASK = torch.tensor([[True, True], [True, False], [True, True]])
LOGPS = tensor([-1.0, -2.0], [-0.5, 0.0], [-1.0, -3.0])
#: What the teacher thinks of the tokens: q - l of 1, -1 and 1/2; the last answer is not taught.
TEACHER = LOGPS + tensor([1.0, -1.0], [0.5, 0.0], [7.0, 7.0])
DIVERGENCE = tensor([0.2, 0.4], [0.6, 99.0], [5.0, 5.0])


def loss_of(logps=LOGPS, old=None, taught=(True, True, False), worth=(0.0, 0.0, 0.0), **options):
    view = View(logps, MASK, teacher_logps=TEACHER, divergence=DIVERGENCE, entropy=DIVERGENCE)
    columns = {"old_logps": logps.detach() if old is None else old, "taught": torch.tensor(taught)}
    columns["advantages"] = torch.tensor(worth, dtype=torch.float64)
    return call_loss(METHOD, Views(completion=view), columns=columns, **options)


def test_only_taught_answers_cost_something():
    """(0.2 + 0.4) / 2, 0.6, and nothing; the third still counts when the core averages over answers."""
    loss, metrics = loss_of()
    assert set(loss) == {"distillation"}
    assert loss["distillation"].tolist() == pytest.approx([0.3, 0.6, 0])
    assert metrics["taught"].tolist() == [1, 1, 0]
    shown = metrics["advantage"].values
    assert shown[:2][MASK[:2]].tolist() == pytest.approx([1, -1, 0.5])
    assert shown[2].isnan().all()  # what nobody taught is not averaged


def test_sampled_tokens_by_hand():
    """(l - q) l: -1 * -1 and 1 * -2, mean -1/2; -0.5 * -0.5. The gradient is l - q over the length."""
    logps = LOGPS.clone().requires_grad_()
    loss, _ = loss_of(logps, mode="sampled_token")
    assert loss["distillation"].tolist() == pytest.approx([-0.5, 0.25, 0])
    loss["distillation"].sum().backward()
    assert logps.grad.tolist() == [[-0.5, 0.5], [-0.5, 0], [0, 0]]


def test_sampled_tokens_have_the_gradient_of_the_divergence_on_average():
    """G1: three tokens under a student s, each weighed by its chance: the gradient of KL(s || p) by the logits."""
    logits = torch.tensor([0.3, -0.4, 1.1], dtype=torch.float64, requires_grad=True)
    target = tensor(0.5, 0.2, 0.3).log()
    logps = logits.log_softmax(-1)
    (expected,) = torch.autograd.grad((logps.exp() * (logps - target)).sum(), logits, retain_graph=True)
    mask = torch.ones(3, 1, dtype=torch.bool)
    values = logps.detach()[:, None]
    view = View(logps[:, None], mask, teacher_logps=target[:, None], divergence=values, entropy=values)
    batch = Batch(3, {"old_logps": values, "taught": torch.ones(3, dtype=torch.bool)})
    config = METHOD.config({"mode": "sampled_token"})
    loss, _ = METHOD.loss(batch=batch, policy=Views(completion=view), reference=None, config=config, step=Step(0, 1))
    (found,) = torch.autograd.grad((loss["distillation"] * logps.detach().exp()).sum(), logits)
    assert found.tolist() == pytest.approx(expected.tolist())


def test_factor_of_tokens_that_became_likelier():
    """exp(l - o) = 3/2 is taken, 5 is cut at 2; without the factor nothing changes."""
    for ratio, factor in ((1.5, 1.5), (5.0, 2.0)):
        old = LOGPS - math.log(ratio)
        assert loss_of(old=old)[0]["distillation"].tolist() == pytest.approx([0.3 * factor, 0.6 * factor, 0])
        assert loss_of(old=old, importance_clip=0.0)[0]["distillation"].tolist() == pytest.approx([0.3, 0.6, 0])


def test_beside_the_policy_gradient():
    """A quarter of the distillation and three quarters of -min(ratio A, clip A): ratio 1.5 is cut at 1.2 for A = 2."""
    old = LOGPS - math.log(1.5)
    loss, _ = loss_of(old=old, worth=(2.0, -1.0, 0.5), weight=0.25, importance_clip=0.0)
    assert loss["distillation"].tolist() == pytest.approx([0.075, 0.15, 0])
    assert loss["policy"].tolist() == pytest.approx([0.75 * -2.4, 0.75 * 1.5, 0.75 * -0.6])


def test_statistics_by_hand():
    """Student (1/2, 1/4, 1/8, 1/8), teacher (0.1, 0.6, 0.2, 0.1). The two likeliest and the rest: s = (1/2, 1/4, 1/4),
    p = (0.1, 0.6, 0.3), M = (0.3, 0.425, 0.275): half of 0.1 ln 1/3 + 0.6 ln 24/17 + 0.3 ln 12/11 = 0.123146 and of
    1/2 ln 5/3 + 1/4 ln 10/17 + 1/4 ln 10/11 = 0.098928."""
    student = tensor([0.5, 0.25, 0.125, 0.125]).log() + 1
    teacher = tensor([0.1, 0.6, 0.2, 0.1]).log() - 1
    found = METHOD.token_statistics(
        logits=student, labels=torch.tensor([1]), teacher_logits=teacher, config=METHOD.config({"topk": 2})
    )
    assert found["divergence"].item() == pytest.approx((0.123146 + 0.098928) / 2, abs=1e-6)
    assert found["teacher_logps"].item() == pytest.approx(math.log(0.6))


def test_advantages_of_the_group():
    """{1, 0, 1}: mean 2/3, sample deviation 0.577350; equal rewards are worth exactly 0 (G10)."""
    rollouts = SimpleNamespace(group=torch.tensor([4, 4, 4, 7, 7]))
    config = METHOD.config({"advantage_epsilon": 0.0})
    rewards = tensor(1.0, 0.0, 1.0, 0.1, 0.1)
    found = METHOD.advantages(rewards=rewards, rollouts=rollouts, config=config, state={})
    assert found.nan_to_num().tolist() == pytest.approx([0.577350, -1.154701, 0.577350, 0, 0], abs=1e-6)


def teacher_prompts(rewards, group, prompts=None, feedback=None, **options):
    rollouts = SimpleNamespace(
        group=torch.tensor(group),
        prompts=prompts or ["q"] * len(group),
        completions=[f"answer {place}" for place in range(len(group))],
        columns={"feedback": feedback} if feedback else {},
    )
    short = {"template": "{prompt}|{hints}", "solution_template": "S {solution};", "feedback_template": "F {feedback};"}
    return METHOD.teacher_prompts(
        rollouts=rollouts, rewards=torch.tensor(rewards), config=METHOD.config(short | options), state={}
    )


def test_the_first_other_right_answer_of_the_group_is_shown():
    """Of group 0 the answers 1 and 3 are right: each shows the other, the wrong ones the first. Of group 1 only answer
    4 is, which is never shown to itself; a success of another group is nobody's."""
    found = teacher_prompts([0.0, 1.0, 0.5, 1.0, 1.0, 0.0], [0, 0, 0, 0, 1, 1])
    assert found == ["q|S answer 1;", "q|S answer 3;", "q|S answer 1;", "q|S answer 1;", None, "q|S answer 4;"]


def test_what_counts_as_success():
    assert teacher_prompts([0.6, 0.0], [0, 0]) == [None, None]
    assert teacher_prompts([0.6, 0.0], [0, 0], success_threshold=0.5) == [None, "q|S answer 0;"]
    assert teacher_prompts([math.nan, 0.0], [0, 0], success_threshold=0.0) == ["q|S answer 1;", None]


def test_feedback_is_shown_with_or_without_a_right_answer():
    found = teacher_prompts([1.0, 0.0, 0.0], [0, 0, 1], feedback=[None, "off by one", "no number"])
    assert found == [None, "q|S answer 0;F off by one;", "q|F no number;"]


def test_of_messages_the_last_question_is_reworded():
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "q"}]
    found = teacher_prompts([1.0, 0.0], [0, 0], prompts=[asked, asked])
    assert found == [None, [asked[0], {"role": "user", "content": "q|S answer 0;"}]]
    assert asked[1]["content"] == "q"


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ({"weight": 1.5}, r"weight is 1\.5, expected a number from 0 to 1"),
        ({"alpha": -0.1}, r"alpha is -0\.1, expected a number from 0 to 1"),
        ({"topk": 0}, "topk is 0, expected 1 or more"),
        ({"template": "{prompt}"}, r"template has no \{hints\}"),
        ({"solution_template": "nothing"}, r"solution_template has no \{solution\}"),
    ],
)
def test_values_that_mean_nothing_are_refused(option, text):
    with pytest.raises(SettingsError, match=text):
        METHOD.config(option)


def judged(prompts, completions):
    """Right where the answer has an a; feedback in words for the others."""
    right = ["a" in completion for completion in completions]
    return [float(one) for one in right], {"feedback": [None if one else "cc" for one in right]}


def test_a_run_learns_from_a_rewards_feedback_and_from_siblings(tmp_path):
    objects = {"model": tiny_model(), "tokenizer": tiny_tokenizer(), "data": [{"prompt": "ab"}, {"prompt": "b"}]}
    usual = {"batch_size": 2, "group_size": 4, "steps": 3, "max_new_tokens": 5, "learning_rate": 1e-2}
    usual |= {"progress": "quiet", "cache": "off", "device": "cpu", "output": str(tmp_path / "run"), "reward": judged}
    run = api.train(str(HERE), **(objects | usual))
    assert all(line["taught"] > 0.5 for line in run.metrics)
    assert all(line["loss"] > 0 for line in run.metrics)
    never = api.train(
        str(HERE), **(objects | usual | {"reward": lambda completions: [0.0] * len(completions)}), overwrite=True
    )
    assert [line["taught"] for line in never.metrics] == [0, 0, 0]
    assert [line["loss"] for line in never.metrics] == [0, 0, 0]
