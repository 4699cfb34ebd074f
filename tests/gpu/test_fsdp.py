"""fsdp on an NVIDIA GPU, in a group of one process: NCCL, mixed precision, shards in the computer's memory."""

import os

import pytest
import torch
import torch.distributed as dist
from posttrain import api
from posttrain_testkit.tiny import count_of_a, tiny_model, tiny_tokenizer

ROWS = [{"prompt": p, "completion": c} for p, c in (("ab", "cab"), ("abcd", "a"), ("b", "ddab"), ("cab", "ba"))]


@pytest.fixture(scope="module", autouse=True)
def alone():
    """Neither group nor variables of it stay for other tests."""
    before = dict(os.environ)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()
    for name in set(os.environ) - set(before):
        del os.environ[name]


@pytest.fixture
def train(tmp_path):
    calls = iter(range(9))

    def call(method="sft", **options):
        common = {"steps": 4, "batch_size": 4, "learning_rate": 1e-2, "progress": "quiet", "cache": "off"}
        common |= {"model": tiny_model(), "tokenizer": tiny_tokenizer(), "data": ROWS, "autocast": False}
        return api.train(method, output=str(tmp_path / str(next(calls))), **(common | options))

    return call


def losses(run) -> list[float]:
    return [line["loss"] for line in run.metrics]


def test_fsdp_gives_the_losses_of_one_process_and_offloading_those_of_fsdp(train):
    single, spread, away = train(), train(strategy="fsdp"), train(strategy="fsdp", cpu_offload=True)
    assert losses(spread) == pytest.approx(losses(single), abs=1e-4)
    assert losses(away) == pytest.approx(losses(spread), abs=1e-4)
    assert {p.device.type for p in spread.parameters} == {"cuda"}
    assert {p.device.type for p in away.parameters} == {"cpu"}
    assert (away.path / "model" / "model.safetensors").is_file()


def test_mixed_precision_is_near(train):
    plain, mixed = train(strategy="fsdp"), train(strategy="fsdp", autocast=True)
    assert mixed.strategy.handles_autocast
    assert {p.dtype for p in mixed.parameters} == {torch.float32}
    assert losses(mixed) == pytest.approx(losses(plain), abs=0.15)
    assert losses(mixed) != losses(plain)


def test_sampling_from_gathered_weights(train):
    data = [{"prompt": row["prompt"]} for row in ROWS]
    online = {"data": data, "reward": count_of_a, "group_size": 4, "max_new_tokens": 6, "steps": 2}
    run = train("grpo", strategy="fsdp", cpu_offload=True, **online)
    assert all(line["sampler_difference"] < 1e-3 for line in run.metrics)
