import json
import math
from pathlib import Path
from random import Random

import pytest
import torch
from posttrain import SampleRequest, api
from posttrain.contract.views import Batch, PerToken, Step, View, Views
from posttrain.errors import DataError, SettingsError
from posttrain_testkit.by_hand import MASK, method_beside, tensor
from posttrain_testkit.goldens.compare import evaluate
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer

HERE = Path(__file__).parent
METHOD = method_beside(__file__)
#: Teacher (3/4, 1/4), student (1/4, 3/4), as logits.
TEACHER = tensor([0.75, 0.25]).log() + 2.0
STUDENT = tensor([0.25, 0.75]).log() - 1.0


def statistics(student, teacher, **options):
    labels = torch.zeros(len(student), dtype=torch.long)
    return METHOD.token_statistics(logits=student, labels=labels, teacher_logits=teacher, config=METHOD.config(options))


@pytest.mark.parametrize(
    ("beta", "expected"),
    [
        (0.0, 0.549306),  # 3/4 ln 3 + 1/4 ln 1/3
        (1.0, 0.549306),
        (0.5, 0.130812),  # M = (1/2, 1/2): 3/4 ln 3/2 + 1/4 ln 1/2, the same from both sides
        (0.25, 0.099228),  # M = (3/8, 5/8): 1/4 (3/4 ln 2 + 1/4 ln 2/5) + 3/4 (1/4 ln 2/3 + 3/4 ln 6/5)
    ],
)
def test_divergence_by_hand(beta, expected):
    assert statistics(STUDENT, TEACHER, beta=beta)["divergence"].item() == pytest.approx(expected, abs=1e-6)


def test_the_ends_are_the_two_directions():
    """P6: teacher (9/10, 1/10), student (1/2, 1/2). KL(p || s) = 9/10 ln 9/5 + 1/10 ln 1/5 = 0.368064, and
    KL(s || p) = 1/2 ln 5/9 + 1/2 ln 5 = 0.510826; between them beta = 0.5 is symmetric."""
    p, s = tensor([0.9, 0.1]).log(), torch.zeros(1, 2, dtype=torch.float64)
    assert statistics(s, p, beta=0.0)["divergence"].item() == pytest.approx(0.368064, abs=1e-6)
    assert statistics(s, p, beta=1.0)["divergence"].item() == pytest.approx(0.510826, abs=1e-6)
    one, other = statistics(s, p)["divergence"].item(), statistics(p, s)["divergence"].item()
    assert one == pytest.approx(other)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_gradient_equals_finite_differences(beta):
    random = torch.Generator().manual_seed(3)
    student, teacher = torch.randn(2, 4, 5, generator=random, dtype=torch.float64)

    def divergence(logits):
        return statistics(logits, teacher, beta=beta)["divergence"]

    assert torch.autograd.gradcheck(divergence, (student.requires_grad_(),))


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_equal_models_teach_nothing_and_certain_ones_stay_finite(beta):
    """In float32: no divergence and no gradient where student and teacher agree, however sure they are."""
    for scale in (1.0, 1e4):
        logits = (scale * torch.randn(6, 9, generator=torch.Generator().manual_seed(1))).requires_grad_()
        same = statistics(logits, logits.detach(), beta=beta)["divergence"]
        same.sum().backward()
        assert same.abs().max() < 1e-6
        assert logits.grad.abs().max() < 1e-6
        far = statistics(logits, logits.detach().flip(1), beta=beta)["divergence"]
        (gradient,) = torch.autograd.grad(far.sum(), logits)
        assert far.isfinite().all()
        assert gradient.isfinite().all()


def test_entropies_are_of_the_two_models():
    """H(1/4, 3/4) = 0.562335 of the student; a uniform teacher over two tokens has ln 2."""
    found = statistics(STUDENT, torch.zeros(1, 2, dtype=torch.float64))
    assert found["entropy"].item() == pytest.approx(0.562335, abs=1e-6)
    assert found["teacher_entropy"].item() == pytest.approx(math.log(2))


def test_loss_is_the_mean_over_tokens():
    """M12, S14: one value a token under the view's own mask, so that the core divides by the tokens learnt from."""
    numbers = tensor([0.1, 0.2], [0.3, 9.0])
    view = View(-numbers, MASK, divergence=numbers, entropy=numbers, teacher_entropy=numbers)
    batch = Batch(2, {"source": ["policy", "data"]})
    loss, metrics = METHOD.loss(
        batch=batch, policy=Views(completion=view), reference=None, config=METHOD.config({}), step=Step(0, 1)
    )
    assert isinstance(loss, PerToken)
    assert loss.mask is MASK
    assert loss.values[MASK].tolist() == [0.1, 0.2, 0.3]
    assert metrics["on_policy"].tolist() == [1, 0]


def plan(random, **options):
    return METHOD.plan_rollouts(prompts=[{}, {}], group_size=3, config=METHOD.config(options), state={}, random=random)


def test_the_whole_step_is_answered_by_one():
    assert plan(Random(1), on_policy_share=1.0) == [[SampleRequest(3)], [SampleRequest(3)]]
    assert plan(Random(1), on_policy_share=0.0) == [[SampleRequest(source="data")]] * 2
    assert plan(Random(1), on_policy_share=0.0, seq_kd=True) == [[SampleRequest(3, source="teacher")]] * 2
    random = Random(5)
    drawn = [plan(random, on_policy_share=0.3) for _ in range(1000)]
    assert all(one == other for one, other in drawn)
    assert sum(one[0].source == "policy" for one, _ in drawn) == pytest.approx(300, abs=60)


@pytest.mark.parametrize("option", ["beta", "on_policy_share"])
def test_a_share_above_one_is_refused(option):
    with pytest.raises(SettingsError, match=rf"{option} is 1\.5, expected a number from 0 to 1"):
        METHOD.config({option: 1.5})


def train(tmp_path, **keywords):
    rows = keywords.pop("rows", [{"prompt": "ab", "completion": "cab"}, {"prompt": "b", "completion": "aa"}])
    objects = {"model": tiny_model(), "tokenizer": tiny_tokenizer(), "data": rows, "teacher": tiny_model(seed=77)}
    usual = {"batch_size": 2, "steps": 3, "max_new_tokens": 5, "progress": "quiet", "cache": "off", "device": "cpu"}
    return api.train(str(HERE), output=str(tmp_path / "run"), **(objects | usual | keywords))


def test_the_data_answer_where_the_student_does_not(tmp_path):
    """Tokens of a step: 2 + 3 + end and 1 + 2 + end, twice over what no sampling could always give."""
    run = train(tmp_path, on_policy_share=0.0)
    assert [line["tokens"] for line in run.metrics] == [10, 10, 10]
    assert {line["on_policy"] for line in run.metrics} == {0.0}
    sampled = [json.loads(line) for line in (run.path / "samples.jsonl").read_text().splitlines()]
    assert {(one["completion"], one["source"]) for one in sampled} == {("cab", "data"), ("aa", "data")}
    assert "sampler_difference" not in run.metrics[0]


def test_the_teacher_answers_with_seq_kd(tmp_path):
    rows = [{"prompt": "ab"}, {"prompt": "b"}]
    run = train(tmp_path, on_policy_share=0.0, seq_kd=True, rows=rows)
    sampled = [json.loads(line) for line in (run.path / "samples.jsonl").read_text().splitlines()]
    assert {one["source"] for one in sampled} == {"teacher"}
    assert {line["on_policy"] for line in run.metrics} == {0.0}
    assert "sampler_difference" not in run.metrics[0]  # what the teacher sampled says nothing of the student's sampler


def test_rows_without_answers_are_refused_before_anything_loads(tmp_path):
    with pytest.raises(DataError, match=r"data row 2: column 'completion' is missing\. Method 'gkd' needs it"):
        train(tmp_path, rows=[{"prompt": "ab", "completion": "c"}, {"prompt": "b"}])
    assert train(tmp_path, rows=[{"prompt": "ab"}], on_policy_share=1.0, steps=1).metrics[0]["on_policy"] == 1


def test_goldens_at_another_temperature(tmp_path):
    """P7: logits (2, 0) of the student and (0, 4) of the teacher at temperature 2 are (1, 0) and (0, 2): with
    s = e/(1 + e) = 0.731059 and p = 1/(1 + e^2) = 0.119203 of the first token, KL(p || s) = 0.119203 ln(0.119203 /
    0.731059) + 0.880797 ln(0.880797 / 0.268941) = -0.216194 + 1.044919 = 0.828725."""
    entry = {
        "inputs": {"student_logits": [[[2.0, 0.0]]], "teacher_logits": [[[0.0, 4.0]]], "tokens": [[0]]},
        "hyperparameters": {"beta": 0.0, "temperature": 2.0},
        "loss": 0.828725,
        "grad_student_logits": [[[0.305928, -0.305928]]],  # (s - p) / 2
    }
    file = tmp_path / "goldens.json"
    file.write_text(json.dumps({"gkd": entry}))
    (result,) = evaluate(file, "gkd", [str(HERE)])
    assert result.status == "equal", result.line()
