"""Sequence-level distillation: who answers, what the loss is, and a run whose answers are all the teacher's."""

import json
from pathlib import Path

import torch
from posttrain import SampleRequest, api
from posttrain.contract.views import View, Views
from posttrain_testkit.by_hand import MASK, method_beside, tensor
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer

HERE = Path(__file__).parent
METHOD = method_beside(__file__)


def plan(**options):
    return METHOD.plan_rollouts(prompts=[{}, {}], group_size=3, config=METHOD.config(options), state={}, random=None)


def test_the_teacher_answers():
    assert plan(greedy=True) == [[SampleRequest(1, source="teacher", greedy=True)]] * 2
    assert plan() == [[SampleRequest(3, source="teacher")]] * 2


def test_loss_is_the_negative_log_probability():
    logps = tensor([-0.25, -2.0], [-1.0, 0.0])
    view = View(logps, MASK, entropy=torch.ones_like(logps))
    loss, metrics = METHOD.loss(
        batch=None, policy=Views(completion=view), reference=None, config=METHOD.config({}), step=None
    )
    assert loss.mask is MASK
    assert loss.values[MASK].tolist() == [0.25, 2, 1]
    assert metrics["nll"].values[MASK].tolist() == [0.25, 2, 1]


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
