"""Sequence-level distillation: who answers, what the loss is, and a run whose answers are all the teacher's."""

import json
from pathlib import Path

import torch
from posttrain import Ask, api
from posttrain.methods import load
from posttrain.views import View, Views
from posttrain_testkit.goldens.compare import evaluate
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "goldens" / "online.json"
METHOD = load(str(HERE))
D = torch.float64


def plan(**options):
    return METHOD.plan_rollouts(prompts=[{}, {}], group_size=3, config=METHOD.config(options), state={}, random=None)


def test_the_teacher_answers():
    assert plan(greedy=True) == [[Ask(1, source="teacher", greedy=True)]] * 2
    assert plan() == [[Ask(3, source="teacher")]] * 2


def test_loss_is_the_negative_log_probability():
    mask = torch.tensor([[True, True], [True, False]])
    logps = torch.tensor([[-0.25, -2.0], [-1.0, 0.0]], dtype=D)
    view = View(logps, mask, entropy=torch.ones_like(logps))
    loss, metrics = METHOD.loss(
        batch=None, policy=Views(completion=view), reference=None, config=METHOD.config({}), step=None
    )
    assert loss.mask is mask
    assert loss.values[mask].tolist() == [0.25, 2, 1]
    assert metrics["nll"].values[mask].tolist() == [0.25, 2, 1]


def test_a_run_learns_what_the_teacher_says(tmp_path):
    """A prompt's greedy answer is the same in every step, and becomes likelier."""
    run = api.train(
        str(HERE), model=tiny_model(), tokenizer=tiny_tokenizer(), teacher=tiny_model(seed=77), data=[{"prompt": "ab"}],
        batch_size=1, steps=4, greedy=True,
        max_new_tokens=4, learning_rate=1e-2, progress="quiet", cache="off", device="cpu",
        output=str(tmp_path / "run"),
    )  # fmt: skip
    lines = [json.loads(line) for line in (run.path / "samples.jsonl").read_text().splitlines()]
    assert {line["source"] for line in lines} == {"teacher"}
    assert len({line["completion"] for line in lines}) == 1
    assert run.metrics[-1]["nll"] < run.metrics[0]["nll"] - 0.1


def test_goldens():
    results = evaluate(GOLDENS, "seqkd", [str(HERE)])
    assert {one.status for one in results} == {"equal"}, [one.line() for one in results]
    assert [one.quantity for one in results[0].comparisons] == ["loss", "grad_student_logits"]
