"""What doctor and --dry-run say of memory, against what processes really took."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from posttrain.cli.main import main
from posttrain.network.kernels.cpu.matmul import bfloat16_gain, has_bfloat16_kernels
from posttrain_testkit.tiny import tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from .test_launch import bare

#: How far an estimate may be from the measured peak.
BOUND = 0.2
CASES = {
    "full": [],
    "adapter": ["--lora"],
    "autocast": ["--autocast"],
    "gradients": ["--bfloat16-gradients"],
    "checkpointing": ["--gradient-checkpointing", "--micro-batch-tokens", "2048"],
    "nf4": ["--strategy", "qlora"],
    "ddp": ["--strategy", "ddp", "--nproc", "2"],
    "fsdp": ["--strategy", "fsdp", "--nproc", "2"],
    "zero-2": ["--strategy", "deepspeed", "--nproc", "2", "--zero-stage", "2"],
    "zero-3": ["--strategy", "deepspeed", "--nproc", "2", "--zero-stage", "3"],
}
#: Package that a case needs.
NEEDS = {"nf4": "bitsandbytes", "zero-2": "deepspeed", "zero-3": "deepspeed"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model of 50 million random numbers; rows of about 120 tokens."""
    folder = tmp_path_factory.mktemp("estimate")
    text = "abcd efgh " * 12
    rows = [{"prompt": text, "completion": text} for _ in range(16)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = LlamaConfig(
        vocab_size=32_000, hidden_size=512, intermediate_size=1536, num_hidden_layers=12, num_attention_heads=8,
        num_key_value_heads=4, pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    return folder / "model", folder / "rows.jsonl"


def peak_of_second_step(command, folder):
    """Run until the second line of metrics is there; what follows, half a gigabyte of checkpoint, is not waited for."""
    file = folder / "metrics.jsonl"
    process = subprocess.Popen(command, env=bare(), start_new_session=True)
    try:
        while not (file.is_file() and file.read_text().count("\n") == 2):
            assert process.poll() is None, f"ended with {process.returncode} before its second step"
            time.sleep(0.05)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return json.loads(file.read_text().splitlines()[-1])["peak_memory_mb"]


@pytest.mark.parametrize("name", CASES)
def test_the_estimate_is_near_the_measured_peak(model, tmp_path, name):
    """Two steps: Adam's moments are there, and the second step's activations come on top of them.

    The estimate is made in a process of its own, as a user makes it: it counts what that process holds.
    """
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    if name in ("autocast", "gradients") and not has_bfloat16_kernels():
        pytest.skip("this processor multiplies bfloat16 in software: minutes for each of these steps")
    folder, rows = model
    run = [sys.executable, "-m", "posttrain", "train", "sft", "--model", str(folder), "--data", str(rows)]
    run += ["--batch-size", "8", "--cache", "off", "--device", "cpu", "--learning-rate", "1e-5", "--steps", "2"]
    run += CASES[name]
    dry = subprocess.run([*run, "--dry-run", "--json"], env=bare(), check=True, stdout=subprocess.PIPE)
    expected = json.loads(dry.stdout)["memory_mb"]
    measured = peak_of_second_step([*run, "--progress", "quiet", "--output", str(tmp_path / "run")], tmp_path / "run")
    print(f"{name}: estimated {expected['total']} MB, measured {measured:.0f} MB, {expected}")
    assert expected["total"] == pytest.approx(measured, rel=BOUND)


def test_doctor_lists_strategies_and_memory(model, capsys, tmp_path):
    folder, _ = model
    assert main(["doctor", "--model", str(folder), "--nproc", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    rows = {row["strategy"]: row for row in report["strategies"]}
    assert {"single", "qlora", "ddp", "fsdp", "deepspeed"} == set(rows)
    assert rows["single"]["works"]
    assert rows["ddp"]["works"]
    memory = {row["strategy"]: row["memory_mb"]["total"] for row in report["memory"]["strategies"]}
    assert memory["fsdp"] < memory["ddp"]
    assert memory["zero-2"] < memory["zero-1"] < memory["ddp"]
    assert memory["zero-3"] < memory["zero-1"]
    assert memory["qlora"] < memory["single"]
    assert report["hardware"]["cores"] >= 1


@pytest.mark.parametrize(("gain", "said"), [(2.04, True), (1.1, False), (0.3, False)])
def test_doctor_says_where_bfloat16_pays(monkeypatch, capsys, gain, said):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr("posttrain.assembly.doctor.bfloat16_gain", lambda: gain)
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert ("multiplies bfloat16 2.0 times as fast as float32: --autocast, or" in text) == said


def test_the_gain_of_bfloat16_is_a_ratio_of_times():
    assert 0.01 < bfloat16_gain(64, 3) < 100


def test_doctor_says_what_is_missing(monkeypatch, capsys, model, tmp_path):
    from posttrain.distributed import requirements

    real = requirements.importlib.util.find_spec
    monkeypatch.setattr(requirements.importlib.util, "find_spec", lambda n: None if n == "deepspeed" else real(n))
    (tmp_path / "run.yaml").write_text(f"method: sft\nmodel: {model[0]}\ndata: [rows.jsonl]\nstrategy: deepspeed\n")
    assert main(["doctor", "--config", str(tmp_path / "run.yaml")]) == 1
    out = capsys.readouterr().out
    assert re.search(r"deepspeed +no +the package deepspeed", out)
    assert "is not installed. Install it with: pip install 'posttrain[deepspeed]'" in out
    assert "The configuration's strategy deepspeed would not work" in out
    assert "zero-2" in out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--nproc", "0"], "nproc is 0, expected at least 1."),
        (["--config", "none.yaml"], "Configuration file 'none.yaml' cannot be read"),
    ],
)
def test_doctor_on_mistakes(capsys, words, text):
    assert main(["doctor", *words]) == 2
    assert capsys.readouterr().err.startswith(text)
