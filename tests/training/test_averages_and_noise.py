"""Weights averaged at the end, against torch's swa_utils; and NEFTune's noise, against transformers' own hook."""

import json
import math

import pytest
import torch
from posttrain import api, hookimpl
from posttrain.contract.views import Sequence
from posttrain.errors import ModelError, SettingsError
from posttrain.network.chunked_head import TokenQuery
from posttrain.network.embedding_noise import noised
from posttrain.network.find_head import find_head
from posttrain.network.modes import evaluating
from posttrain.network.token_model import TokenModel
from posttrain.runs.directory import RunDirectory
from posttrain.training.averaging import scheduled
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import AutoModelForCausalLM
from transformers.integrations.neftune import neftune_post_forward_hook

from .conftest import ROWS


class Steps:
    """The weights after each step."""

    def __init__(self):
        self.seen = []

    @hookimpl
    def posttrain_step_done(self, run):
        self.seen.append([p.detach().clone() for p in run.policy.parameters()])


def averaged_by_torch(steps, decay):
    holder = torch.nn.ParameterList([torch.nn.Parameter(p.clone()) for p in steps[0]])
    model = AveragedModel(holder, multi_avg_fn=get_ema_multi_avg_fn(decay))
    for values in steps:
        for parameter, value in zip(holder, values, strict=True):
            parameter.data.copy_(value)
        model.update_parameters(holder)
    return list(model.module)


def saved_weights(run):
    return [p.detach() for p in AutoModelForCausalLM.from_pretrained(run.path / "model").parameters()]


def close(found, wanted, atol=1e-6):
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=atol)


def test_a_moving_average_is_torchs_and_is_what_is_saved(train):
    steps = Steps()
    run = train("sft", ema_decay=0.7, steps=4, observers=[steps], eval_data=ROWS["sft"][:3])
    wanted = averaged_by_torch(steps.seen, 0.7)
    close(saved_weights(run), wanted)
    close(list(run.policy.parameters()), wanted)
    assert max(float((a - b).abs().max()) for a, b in zip(wanted, steps.seen[-1], strict=True)) > 1e-3
    events = [json.loads(line) for line in (run.path / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    (event,) = [event for event in events if event["code"] == "weights-averaged"]
    assert event["message"] == "the weights are the moving average of 4 steps, decay 0.7"
    assert event["evidence"]["eval_loss"] == pytest.approx(run.evaluation(run.compute, run.progress)["loss"], rel=1e-6)


def test_a_moving_average_goes_on_exactly(train, tmp_path):
    """Stopped after a checkpoint and resumed, the average is that of the uninterrupted run to the last bit."""
    train("sft", ema_decay=0.7, steps=2, schedule="constant", output=str(tmp_path / "half"))
    resumed = api.resume(tmp_path / "half", model=tiny_model(), tokenizer=tiny_tokenizer(), data=ROWS["sft"], steps=4)
    constant = train("sft", ema_decay=0.7, steps=4, schedule="constant")
    close(saved_weights(resumed), saved_weights(constant), atol=0)
    assert resumed.step == 4


def test_only_checkpoints_of_the_schedule_are_averaged(tmp_path):
    """Not the beginning, which an early interruption saves, nor one that was asked for in between."""
    for step in (0, 2, 3, 10, 4, 11):
        (tmp_path / "checkpoints" / f"step-{step}").mkdir(parents=True)
        (tmp_path / "checkpoints" / f"step-{step}" / "state.json").write_text("{}")
    found = [path.name for path in scheduled(RunDirectory(tmp_path), 2, 11)]
    assert found == ["step-2", "step-4", "step-10", "step-11"]


@pytest.mark.parametrize(("total", "kept"), [(1, ["step-4", "step-5"]), (5, ["step-2", "step-4", "step-5"])])
def test_the_mean_of_the_last_checkpoints(train, total, kept):
    """Of checkpoints after steps 2, 4 and 5 the last two; as many are kept at least, whatever save-total says."""
    steps = Steps()
    run = train("sft", average_last=2, save_every=2, steps=5, save_total=total, observers=[steps])
    wanted = [(a + b) / 2 for a, b in zip(steps.seen[3], steps.seen[4], strict=True)]
    close(saved_weights(run), wanted)
    assert sorted(path.name for path in (run.path / "checkpoints").glob("step-*")) == kept
    with torch.no_grad():  # the last checkpoint holds the weights that a longer run goes on from
        run.compute.strategy.load(run.compute, run.path / "checkpoints" / "step-5")
    close(list(run.policy.parameters()), steps.seen[4], atol=0)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"ema_decay": 1.0}, "ema-decay is 1, expected a number between 0 and 1."),
        ({"ema_decay": 0.5, "average_last": 2}, "ema-decay and average-last are two averages"),
        ({"average_last": 2}, "average-last averages the checkpoints that --save-every N makes"),
        (
            {"ema_decay": 0.5, "save_best": True, "eval_data": ROWS["sft"]},
            "save-best saves one checkpoint and ema-decay",
        ),
        ({"neftune_alpha": -1.0}, "neftune-alpha is -1.0"),
    ],
)
def test_averages_that_contradict_are_refused(train, options, text):
    with pytest.raises(SettingsError, match=text):
        train("sft", **options)


def test_the_noise_is_transformers_own():
    """One row, one seed: the numbers of the hook that transformers' Trainer registers."""
    embedding = torch.nn.Embedding(11, 6)
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    torch.manual_seed(3)
    with noised(embedding, 5.0, torch.tensor([[5]])):
        found = embedding(ids)
    embedding.neftune_noise_alpha = 5.0
    embedding.register_forward_hook(neftune_post_forward_hook)
    torch.manual_seed(3)
    torch.testing.assert_close(found, embedding(ids), rtol=0, atol=1e-6)


@pytest.mark.parametrize("packed", [True, False])
def test_each_token_has_the_noise_of_its_own_row(packed):
    """Rows of 4 and 36 tokens of width 16: bounds of 10/8 and 10/24, whatever stands beside a row."""
    model = tiny_model()
    policy = TokenModel(model, find_head(model), packed=packed)
    policy.noise_alpha = 10.0
    width = model.config.hidden_size
    rows = [Sequence(torch.arange(n) % 8 + 4, torch.arange(n) > 0) for n in (4, 36)]
    embedding, given = model.get_input_embeddings(), []
    layer = model.model.layers[0]
    keep = layer.register_forward_pre_hook(lambda module, args, kwargs: given.append(args[0]), with_kwargs=True)
    policy.train()
    policy(rows, TokenQuery(8))
    keep.remove()
    clean = [embedding(row.ids) for row in rows]
    if packed:
        parts = given[0][0].split([4, 36])
    else:
        parts = [given[0][0, :4], given[0][1]]
    for row, plain, part in zip(rows, clean, parts, strict=True):
        noise, bound = (part - plain).abs(), 10 / math.sqrt(len(row) * width)
        assert float(noise.max()) <= bound + 1e-6
        assert float(noise.mean()) == pytest.approx(bound / 2, rel=0.25)
    assert not embedding._forward_hooks


def test_evaluation_has_no_noise(train):
    """Of the policy in evaluation mode nor of a dpo reference: its loss is ln 2 where only the policy has none."""
    run = train("sft", neftune_alpha=50.0, learning_rate=0.0, eval_data=ROWS["sft"], steps=1)
    plain = train("sft", learning_rate=0.0, eval_data=ROWS["sft"], steps=1)
    assert run.evaluations[0]["eval_loss"] == plain.evaluations[0]["eval_loss"]
    assert run.metrics[0]["loss"] != pytest.approx(plain.metrics[0]["loss"], rel=1e-3)
    pairs = train("dpo", neftune_alpha=5.0, learning_rate=0.0, eval_data=ROWS["dpo"], steps=1)
    assert pairs.evaluations[0]["eval_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert pairs.metrics[0]["loss"] != pytest.approx(math.log(2), abs=1e-4)
    with evaluating(run.policy):
        rows = [Sequence(torch.arange(6) + 4, torch.arange(6) > 0)]
        assert torch.equal(*[run.policy(rows, TokenQuery(8))["logps"] for _ in range(2)])


def test_noise_where_it_cannot_be():
    with (
        pytest.raises(ModelError, match="does not call its embedding"),
        noised(torch.nn.Embedding(3, 2), 5.0, torch.ones(1)),
    ):
        pass


def test_online_methods_take_no_noise(train):
    with pytest.raises(SettingsError, match="'grpo' compares the policy with its own samples"):
        train("grpo", neftune_alpha=5.0)
