"""A reference that follows the policy: its weights worked out by hand, resumed, and without a cache of what it said."""

import shutil
from pathlib import Path

import pytest
import torch
from posttrain import api, hookimpl
from posttrain.errors import SettingsError
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer

DPO = str(Path(__file__).parents[2] / "plugins" / "dpo")
ROWS = [{"prompt": "ab", "chosen": "aa", "rejected": "h"}, {"prompt": "c", "chosen": "b", "rejected": "gg"}]


class Weights:
    """The trained weights before the first step and after each."""

    def __init__(self):
        self.seen = []

    @hookimpl
    def posttrain_run_started(self, run):
        self.seen.append(self.of(run))

    @hookimpl
    def posttrain_step_done(self, run):
        self.seen.append(self.of(run))

    def of(self, run):
        return {name: p.detach().clone() for name, p in run.model.named_parameters() if p.requires_grad}


@pytest.fixture
def train(tmp_path):
    def run(**options):
        usual = {"batch_size": 2, "steps": 3, "learning_rate": 1e-2, "progress": "quiet", "cache": "off"}
        objects = {"model": tiny_model(), "tokenizer": tiny_tokenizer(), "data": ROWS}
        return api.train(DPO, output=str(tmp_path / "run"), device="cpu", overwrite=True, **(objects | usual | options))

    return run


@pytest.mark.parametrize("lora", [False, True])
def test_weights_by_hand(train, lora):
    """Every second of five steps, half of the way: from w0 to w2, and from there to w4."""
    weights = Weights()
    run = train(steps=5, reference_every=2, reference_rate=0.5, lora=lora, observers=[weights])
    expected = weights.seen[0]
    for at in (2, 4):
        expected = {name: value + 0.5 * (weights.seen[at][name] - value) for name, value in expected.items()}
    policy = weights.of(run)
    with run.compute.reference.active():
        now = weights.of(run)
    torch.testing.assert_close(now, expected, atol=1e-6, rtol=1e-5)
    assert all(torch.equal(policy[name], value) for name, value in weights.of(run).items())
    assert any(not torch.equal(policy[name], value) for name, value in expected.items())


def test_a_copy_makes_every_margin_zero_again(train):
    """Renewed after each step, the policy is its own reference at the next one: the loss is ln 2, as at the first."""
    losses = [line["loss"] for line in train(reference_every=1).metrics]
    assert losses == pytest.approx([0.693147] * 3, abs=1e-6)
    assert train().metrics[-1]["loss"] < 0.69


def test_a_resumed_run_has_the_same_reference(train):
    whole = train(steps=4, save_every=2, reference_every=1, reference_rate=0.3)
    copy = whole.path.with_name("resumed")
    shutil.copytree(whole.path, copy)
    shutil.rmtree(copy / "checkpoints" / "step-4")
    again = api.resume(copy, model=tiny_model(), tokenizer=tiny_tokenizer(), data=ROWS)
    assert [line["loss"] for line in again.metrics] == [line["loss"] for line in whole.metrics]
    assert all(
        torch.equal(value, again.compute.reference.saved()[name])
        for name, value in whole.compute.reference.saved().items()
    )


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"reference_every": 0}, "reference-every is 0, expected a larger number"),
        ({"reference_every": 1, "reference_rate": 0.0}, r"reference-rate is 0\.0, expected a number above 0"),
        ({"reference_every": 3, "reference_model": "m"}, "reference is 'm' and also follows the policy every 3 steps"),
    ],
)
def test_what_makes_no_sense_is_refused(train, options, text):
    with pytest.raises(SettingsError, match=text):
        train(**options)
