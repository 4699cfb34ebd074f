"""Every stable method on mixtures of experts: the cut of a step changes nothing, and a resumed run is the whole one."""

import shutil

import pytest
import torch
from posttrain import api
from posttrain_testkit.tiny import count_of_a, tiny_tokenizer
from posttrain_testkit.tiny_experts import tiny_experts

from .conftest import SHARED_PAIRS as PAIRS

STABLE = ["sft", "dpo", "reward", "grpo", "rloo"]
CUTS = ({"micro_batch_size": 1}, {"micro_batch_size": 3}, {"packing": False, "micro_batch_size": 2})


def objects(method, dtype=torch.float64):
    """The same model each time, with what a run of ``method`` is given besides."""
    head = "reward-head" if method == "reward" else "vocabulary"
    found = {"model": tiny_experts("mixtral", head, dtype), "tokenizer": tiny_tokenizer(), "data": PAIRS}
    if method == "sft":
        found["data"] = [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in PAIRS]
    if method in ("grpo", "rloo"):
        found |= {"data": [{"prompt": pair["prompt"]} for pair in PAIRS], "reward": count_of_a}
    return found


def train(method, path, **options):
    own = {"batch_size": 4, "steps": 3, "learning_rate": 0.01, "router_loss_coefficient": 0.3, "report": False}
    own |= {"progress": "quiet", "cache": "off", "device": "cpu", "verify_saved": False, "output": str(path)}
    if method in ("grpo", "rloo"):
        own |= {"group_size": 2, "max_new_tokens": 4}
    return api.train(method, **(own | objects(method) | {"dtype": "float64"} | options))


def weights(run):
    return {name: p.detach().clone() for name, p in run.model.named_parameters()}


@pytest.mark.parametrize("method", STABLE)
def test_the_cut_of_a_step_changes_nothing(method, tmp_path):
    whole = train(method, tmp_path / "whole", steps=1, optimizer="sgd", learning_rate=1.0, max_grad_norm=0.0)
    wanted = weights(whole)
    for place, cut in enumerate(CUTS):
        options = {"steps": 1, "optimizer": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0} | cut
        run = train(method, tmp_path / str(place), **options)
        assert run.metrics[0]["loss"] == pytest.approx(whole.metrics[0]["loss"], abs=1e-6)
        assert run.metrics[0]["router_loss"] == pytest.approx(whole.metrics[0]["router_loss"], abs=1e-6)
        found = weights(run)
        assert max(float((found[name] - wanted[name]).abs().max()) for name in wanted) <= 1e-6, cut


@pytest.mark.parametrize("method", STABLE)
def test_a_resumed_run_has_the_bits_of_the_whole_one(method, tmp_path):
    whole = train(method, tmp_path / "whole", save_every=1, save_total=9)
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    for step in (2, 3):
        shutil.rmtree(tmp_path / "part" / "checkpoints" / f"step-{step}")
    resumed = api.resume(tmp_path / "part", **objects(method))
    names = ("loss", "grad_norm", "router_loss", "router_load_max", "router_entropy")
    for ours, theirs in zip(resumed.metrics, whole.metrics, strict=True):
        assert {name: ours[name] for name in names} == {name: theirs[name] for name in names}
    found, wanted = weights(resumed), weights(whole)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
