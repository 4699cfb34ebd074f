"""The engine outside of a run: saved models verified against it, and evaluations that it answers.

Each starts an engine in a process of its own, as the commands do.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import posttrain
import pytest
import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[3]
TEXTS = [{"prompt": letters, "completion": letters[::-1]} for letters in ("ab", "cde", "fghi", "jk")]


@pytest.fixture(scope="module")
def folder(kit, tokenizer, tmp_path_factory):
    """A model on disk."""
    place = tmp_path_factory.mktemp("outside") / "model"
    kit.made(tied=True).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def call(*words):
    """A command of posttrain: its exit code and what it printed as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "posttrain.cli.main", *map(str, words), "--json"],
        env=os.environ | {"PYTHONPATH": str(ROOT / "core"), "VLLM_LOGGING_LEVEL": "ERROR"},
        capture_output=True,
        text=True,
    )
    lines = done.stdout.splitlines()  # the engine may say something before
    begin = next((place for place, line in enumerate(lines) if line in ("{", "[")), None)
    assert begin is not None, done.stderr[-3000:]
    return done.returncode, json.loads("\n".join(lines[begin:]))


def train(folder, output, **keywords):
    return posttrain.train(
        "sft", model=str(folder), data=TEXTS, steps=3, learning_rate=3e-3, output=str(output), cache="off",
        progress="quiet", device="cpu", report=False, **keywords,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_saved_model_says_the_same_in_the_engine(folder, tmp_path, kind):
    run = train(folder, tmp_path / "run", lora=kind == "lora")
    code, said = call("verify", run.path, "--against", "vllm")
    (verdict,) = [one for one in said if one["subject"] == "vllm"]
    print(f"{kind}: largest difference of a log-prob in vLLM {verdict['difference']}")
    assert (code, verdict["problems"]) == (0, [])
    assert verdict["difference"] < 1e-3


def test_weights_that_are_others_are_caught_in_the_engine(folder, tmp_path):
    run = train(folder, tmp_path / "run")
    other = shutil.copytree(run.path, tmp_path / "other")
    file = other / "model" / "model.safetensors"
    weights = load_file(file)
    name = "model.layers.1.mlp.down_proj.weight"
    weights[name] = weights[name] + 0.3 * torch.randn(weights[name].shape, generator=torch.Generator().manual_seed(0))
    save_file(weights, file, metadata={"format": "pt"})
    code, said = call("verify", other, "--against", "vllm")
    assert code != 0
    (verdict,) = [one for one in said if one["subject"] == "vllm"]
    assert verdict["problems"]


def test_evaluations_are_the_same_by_both(folder, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": chr(97 + n % 26) * (1 + n % 9)}) + "\n" for n in range(60)))
    (tmp_path / "own.py").write_text("def long(prompts, completions):\n    return [len(c) / 9 for c in completions]\n")
    words = ["evaluate", folder, "--data", rows, "--reward", f"{tmp_path / 'own.py'}:long", "--max-new-tokens", "12"]
    found = {}
    for name in ("hf", "vllm"):
        place = tmp_path / name
        code, _ = call(*words, "--device", "cpu", "--generation", name, "--output", place)
        assert code == 0
        found[name] = json.loads((place / "evaluation.json").read_text())["values"]["data"]
    same = sum(a == b for a, b in zip(found["hf"]["reward"], found["vllm"]["reward"], strict=True))
    print(f"greedy scores equal: {same} of 60")
    assert same == 60
    assert found["hf"]["length"] == found["vllm"]["length"]
