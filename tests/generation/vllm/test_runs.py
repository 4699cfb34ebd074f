"""Whole runs: GRPO through hf, vLLM in the process, and a server that is killed on the way."""

import json
import os
import shutil
import signal
import tempfile
import threading
import time
from pathlib import Path

import posttrain
import psutil
import pytest

SMOLLM = Path("~/.cache/posttrain/smollm2-135m").expanduser()
#: Two prompts a step, four completions each, of at most 24 tokens.
SMALL = {
    "data": ["reasoning-gym:chain_sum"],
    "limit": 8,
    "max_length": 96,
    "max_new_tokens": 24,
    "batch_size": 2,
    "group_size": 4,
    "learning_rate": 1e-5,
    "samples_per_step": 8,
    "progress": "quiet",
    "cache": "off",
}


def lines(run, name):
    return [json.loads(line) for line in (run.path / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def smollm():
    if not (SMOLLM / "model.safetensors").exists():
        pytest.skip(f"{SMOLLM} is not there. Download HuggingFaceTB/SmolLM2-135M-Instruct into it.")
    return str(SMOLLM)


@pytest.fixture(scope="module")
def greedy_by_hf(smollm, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "hf"
    run = posttrain.train("grpo", model=smollm, output=str(path), steps=1, temperature=0.0, **SMALL)
    return [(line["prompt"], line["completion"]) for line in lines(run, "samples.jsonl")]


def check_difference(run):
    """The must-show figure, in float32: what was sampled against what the trainer makes of it."""
    found = [line["sampler_difference"] for line in run.metrics]
    print(f"mean sampler-trainer difference of a log-prob by step: {found}")
    assert max(found) < 0.02
    assert all(line["sampler_difference_max"] < 0.02 for line in run.metrics)


def test_a_made_model_in_memory_learns_through_the_engine_and_resumes(kit, tokenizer, tmp_path, run_limits):
    """G15: the resumed run samples with the checkpoint's weights at once, so its step is the one that was taken."""
    objects = {
        "tokenizer": tokenizer,
        "data": [{"prompt": text} for text in ("one", "seven", "of", "nothing")],
        "reward": lambda prompts, completions: [float(len(set(text))) for text in completions],
    }
    small = {name: SMALL[name] for name in ("batch_size", "group_size", "max_new_tokens", "progress", "cache")}
    options = {"generation": "vllm", "steps": 3, "save_every": 2, "learning_rate": 1e-3}
    path = tmp_path / "run"
    run = posttrain.train("grpo", model=kit.made(), output=str(path), **objects, **options, **small)
    check_difference(run)
    assert [line["prompts_trained"] for line in run.metrics] == [2, 4, 6]
    assert len({line["reward"] for line in run.metrics}) == 3

    shutil.rmtree(path / "checkpoints" / "step-3")
    resumed = posttrain.resume(path, model=kit.made(), **objects)
    check_difference(resumed)
    for name in ("reward", "loss", "grad_norm", "completion_length"):
        assert resumed.metrics[2][name] == pytest.approx(run.metrics[2][name], rel=1e-4, abs=1e-6)


def test_in_the_process(smollm, greedy_by_hf, tmp_path, run_limits):
    run = posttrain.train(
        "grpo", model=smollm, output=str(tmp_path / "greedy"), steps=1, temperature=0.0, generation="vllm", **SMALL
    )
    assert [(line["prompt"], line["completion"]) for line in lines(run, "samples.jsonl")] == greedy_by_hf
    run = posttrain.train("grpo", model=smollm, output=str(tmp_path / "run"), steps=2, generation="vllm", **SMALL)
    check_difference(run)


@pytest.fixture(scope="module")
def process(smollm, run_limits):
    from posttrain.generation.vllm.process import ServerOptions, Supervised, free_port

    options = ServerOptions(smollm, port=free_port(), dtype="float32", max_length=128, batch_size=16, adapter_rank=16)
    process = Supervised(options, tempfile.TemporaryDirectory(prefix="posttrain-test-"))
    yield process
    process.close()


def test_on_a_server_that_is_killed_on_the_way(smollm, greedy_by_hf, process, tmp_path):
    common = {"model": smollm, "generation": process.url, "generation_patience": 240.0} | SMALL
    killed = []

    def kill_in_the_second_step(path):
        while not (path / "metrics.jsonl").exists() or not (path / "metrics.jsonl").read_text().strip():
            time.sleep(0.05)
        (server,) = psutil.Process(process.process.pid).children()
        os.kill(server.pid, signal.SIGKILL)
        killed.append(time.monotonic())

    run = posttrain.train("grpo", output=str(tmp_path / "greedy"), steps=1, temperature=0.0, **common)
    assert [(line["prompt"], line["completion"]) for line in lines(run, "samples.jsonl")] == greedy_by_hf
    threading.Thread(target=kill_in_the_second_step, args=(tmp_path / "run",), daemon=True).start()
    run = posttrain.train("grpo", output=str(tmp_path / "run"), steps=2, **common)
    print(f"the run was through {time.monotonic() - killed[0]:.0f} s after its server was killed")
    check_difference(run)
    assert run.metrics[-1]["prompts_trained"] == run.metrics[-1]["prompts_issued"] == 4
    codes = [line["code"] for line in lines(run, "events.jsonl")]
    assert "rollout-server-lost" in codes
    assert "rollout-server-back" in codes


def test_an_adapter_is_at_most_a_twentieth_of_the_bytes(kit, smollm, process, run_limits):
    """Of a sync after a step; rank 16 on every linear layer, posttrain's own default."""
    from posttrain.generation.vllm.servers import VllmServers
    from posttrain.models.load import load_policy, load_tokenizer
    from posttrain.settings import Settings

    sent = []
    for lora in (False, True):
        settings = Settings(model=smollm, lora=lora)
        tokenizer = load_tokenizer(smollm, settings.model)
        policy = load_policy(smollm, tokenizer, settings.model).policy
        servers = VllmServers([process.url], policy, tokenizer, run_limits(frozenset({2})), lambda: 60.0, True, print)
        kit.give(servers, policy, 0)
        before = servers.sent_bytes
        kit.give(servers, policy, 1)
        sent.append(servers.sent_bytes - before)
        servers.close()
    whole, adapter = sent
    print(f"bytes of a sync: {whole} whole, {adapter} adapter, {adapter / whole:.4f}")
    assert 0 < adapter <= 0.05 * whole
