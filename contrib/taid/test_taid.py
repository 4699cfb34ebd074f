import math

import pytest
import torch
from posttrain import api
from posttrain.contract.views import Step
from posttrain_testkit.by_hand import method_beside, tensor
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer

METHOD = method_beside(__file__)


def statistics(student, teacher, state=None, **options):
    labels = torch.zeros(len(student), dtype=torch.long)
    config = METHOD.config(options)
    return METHOD.token_statistics(
        logits=student, labels=labels, teacher_logits=teacher, config=config, state=state or {}
    )


def follow(state, loss, number, total, **options):
    METHOD.after_step(step=Step(number, total), metrics={"loss": loss}, config=METHOD.config(options), state=state)
    return state


#: Logits (ln 3, 0) of the teacher and (0, 0) of the student.
TEACHER = tensor([math.log(3), 0.0])
STUDENT = torch.zeros(1, 2, dtype=torch.float64)


def test_the_target_lies_between():
    """At t = 1/2 the target has logits (ln 3 / 2, 0): sqrt(3) / (1 + sqrt(3)); against a uniform student ln 2 nats
    whatever the target; against (3/4, 1/4) with the student as teacher's end, by hand."""
    assert statistics(STUDENT, TEACHER, {"t": 0.5})["cross_entropy"].item() == pytest.approx(math.log(2))
    share = math.sqrt(3) / (1 + math.sqrt(3))
    found = statistics(TEACHER, STUDENT, {"t": 0.5})["cross_entropy"].item()
    assert found == pytest.approx(-share * math.log(0.75) - (1 - share) * math.log(0.25))


def test_gradient_is_that_of_the_target():
    """By the first logit: s - target, with the target held constant."""
    logits = STUDENT.clone().requires_grad_()
    statistics(logits, TEACHER, {"t": 0.5})["cross_entropy"].sum().backward()
    assert logits.grad[0, 0].item() == pytest.approx(0.5 - math.sqrt(3) / (1 + math.sqrt(3)))


def test_t_follows_the_loss():
    """The update that the golden file describes: from 2 to 1.5 at the beginning of a long run. Momentum 0.0025, step
    0.0005 * sigmoid(0.0025) * 0.6 = 0.00015."""
    state = follow({}, 2.0, 0, 10**9)
    assert "t" not in state
    follow(state, 1.5, 1, 10**9)
    assert state["m"] == pytest.approx(0.0025)
    assert state["t"] == pytest.approx(0.40015, abs=1e-6)


def test_t_is_never_behind_the_line_nor_beyond_its_end():
    state = follow({"loss": 1.0}, 1.0, 4, 10)
    assert state["t"] == pytest.approx(0.4 + 0.6 / 2)
    assert follow(state, 1.0, 9, 10)["t"] == 1
    assert follow({"loss": 1.0, "t": 0.5}, 1.0, 0, 10, t_end=0.5)["t"] == 0.5


def test_a_run_moves_t(tmp_path):
    """Line: 0.4 in the first two steps, as the first has nothing to compare with, then 0.4 + 0.6 * 2/4, 3/4."""
    run = api.train(
        METHOD, model=tiny_model(), tokenizer=tiny_tokenizer(), teacher=tiny_model(seed=77),
        data=[{"prompt": "ab", "completion": "cab"}], batch_size=1, steps=4, progress="quiet", cache="off",
        device="cpu", output=str(tmp_path / "run"), rate=1e-9,
    )  # fmt: skip
    assert [line["interpolation"] for line in run.metrics] == pytest.approx([0.4, 0.4, 0.7, 0.85])
