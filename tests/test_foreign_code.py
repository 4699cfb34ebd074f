"""Python code in a model's folder runs in no command, whatever stands on standard input; nothing asks whether to."""

import ast
import json
import os
import pickle
import shutil
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from posttrain.errors import ModelError
from posttrain.models.adapters import adapter_base
from posttrain.rewards.model import reward_model
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer
from transformers import LlamaConfig, LlamaForSequenceClassification

from .conftest import ROOT

PAIRS = [{"prompt": "ab", "chosen": "cab", "rejected": "fg"}, {"prompt": "a", "chosen": "bc", "rejected": "hhe"}]
CODE = """
import pathlib
pathlib.Path({marker!r}).write_text("ran")
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig

class OwnReward(LlamaForSequenceClassification):
    config_class = OwnConfig

class OwnTokenizer(PreTrainedTokenizerFast):
    pass

def generate(model, *arguments, **keywords):
    raise RuntimeError("foreign code")
"""


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def with_code(folder, marker):
    """Give a folder code of its own for everything that transformers can take from a folder."""
    (folder / "own.py").write_text(CODE.format(marker=str(marker)))
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(CODE.format(marker=str(marker)))
    auto = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    auto |= {"AutoModelForSequenceClassification": "own.OwnReward", "AutoModelForTokenClassification": "own.OwnReward"}
    change(folder / "config.json", model_type="own", auto_map=auto)
    tokenizer = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]}}
    change(folder / "tokenizer_config.json", **tokenizer)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Sound models, and beside each of them one that brings code: policy, reward model, adapter with such a base."""
    root = tmp_path_factory.mktemp("foreign")
    tiny_model().save_pretrained(root / "model")
    tiny_tokenizer().save_pretrained(root / "model")
    rows = len(tiny_tokenizer())
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForSequenceClassification(LlamaConfig(vocab_size=rows, num_labels=1, **sizes)).save_pretrained(root / "reward")
    tiny_tokenizer().save_pretrained(root / "reward")
    for name in ("model", "reward"):
        shutil.copytree(root / name, root / f"own-{name}")
        with_code(root / f"own-{name}", root / "ran")
    tuned = get_peft_model(tiny_model(), LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    tuned.save_pretrained(root / "adapter")
    tiny_tokenizer().save_pretrained(root / "adapter")
    change(root / "adapter" / "adapter_config.json", base_model_name_or_path=str(root / "own-model"))
    kinds = [json.loads((root / "model" / name).read_text()) for name in ("config.json", "tokenizer_config.json")]
    shutil.copytree(root / "own-model", root / "known")
    change(root / "known" / "config.json", model_type=kinds[0]["model_type"])
    change(root / "known" / "tokenizer_config.json", tokenizer_class=kinds[1]["tokenizer_class"])
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    (root / "prompts.jsonl").write_text('{"prompt": "ab"}\n')
    stranger = {"method": "sft", "settings": {"model": "own-model", "trust_remote_code": str(root / "own-model")}}
    (root / "run").mkdir()
    (root / "run" / "run.json").write_text(json.dumps(stranger))
    shutil.copytree(root / "adapter", root / "run" / "model")
    return root


TRAIN = ["--data", "pairs.jsonl", "--steps", "1", "--cache", "off", "--device", "cpu", "--model"]
ONLINE = [*TRAIN[:1], "prompts.jsonl", *TRAIN[2:], "model", "--group-size", "2", "--max-new-tokens", "2"]
#: Command -> the model that is named as the one that wants to run code.
COMMANDS = {
    ("train", "dpo", *TRAIN, "own-model", "--output", "out"): "own-model",
    ("train", "dpo", *TRAIN, "own-model", "--dry-run"): "own-model",
    (
        "train",
        "dpo",
        *TRAIN,
        "model",
        "--reference-model",
        "own-model",
        "--beta",
        "0.2",
        "--output",
        "out2",
    ): "own-model",
    ("train", "grpo", *ONLINE, "--reward", "own-reward", "--output", "out3"): "own-reward",
    ("check-data", "pairs.jsonl", "--model", "own-model"): "own-model",
    ("generate", "own-model", "--prompt", "ab"): "own-model",
    ("generate", "adapter", "--prompt", "ab"): "own-model",
    ("export", "run", "whole"): "own-model",
    ("doctor", "--model", "own-model"): "own-model",
    ("serve-rewards", "own-reward", "--port", "0"): "own-reward",
}
KNOWN = ("generate", "known", "--prompt", "ab", "--max-new-tokens", "2")
#: Each command in turn, all in one process: what it printed, its exit code, and whether foreign code ran.
DRIVER = """
import contextlib, io, json, pathlib, sys
from posttrain.cli.main import main
for words in json.loads(sys.argv[1]):
    pathlib.Path("ran").unlink(missing_ok=True)
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        code = main(words)
    print("RESULT", json.dumps([words, code, text.getvalue(), pathlib.Path("ran").exists()]))
"""


@pytest.fixture(scope="module")
def results(place):
    """Exit code, output and whether code ran, of each command; on standard input stands yes."""
    plugins = [str(path.parent.parent) for path in (ROOT / "plugins").glob("*/*/method.toml")]
    paths = os.pathsep.join([str(ROOT / "core"), *plugins])
    environment = os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "HF_HOME": str(place / "hub")}
    command = [sys.executable, "-c", DRIVER, json.dumps([*COMMANDS, KNOWN])]
    done = subprocess.run(
        command, env=environment, cwd=place, input="yes\n" * 500, capture_output=True, text=True, check=False
    )
    lines = [line.partition(" ")[2] for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert len(lines) == len(COMMANDS) + 1, done.stdout + done.stderr
    assert "[y/N]" not in done.stdout + done.stderr
    return {tuple(words): found for words, *found in map(json.loads, lines)}


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: "-".join(words[:2]) + f"-{len(words)}")
def test_yes_on_standard_input_runs_nothing(results, words):
    code, text, ran = results[words]
    assert not ran
    assert code == 2, text
    assert "[y/N]" not in text
    (line,) = [line for line in text.splitlines() if "cannot be loaded" in line]
    assert COMMANDS[words] in line
    assert "auto_map" in line
    assert "Expected a model that transformers itself knows" in line


def test_code_that_is_not_needed_does_not_run_either(results):
    """A model that transformers knows, with an auto_map and a loop of its own for generating: loaded without them."""
    code, text, ran = results[KNOWN]
    assert (code, ran) == (0, False), text


def test_pickled_weights_are_not_loaded(place, tmp_path):
    """Of reward models and adapters either; the files would load, and give the very model, if they were read."""
    folder = tmp_path / "reward"
    shutil.copytree(place / "reward", folder)
    weights = LlamaForSequenceClassification.from_pretrained(folder).state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    assert LlamaForSequenceClassification.from_pretrained(folder, use_safetensors=False).num_labels == 1
    with pytest.raises(ModelError, match=r"reward' cannot be loaded: .* Only safetensors weights are loaded; convert"):
        reward_model(folder, device="cpu")
    adapter = tmp_path / "adapter"
    shutil.copytree(place / "adapter", adapter)
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(ModelError, match=r"adapter' has its weights in adapter_model\.bin\. Only safetensors weights"):
        adapter_base(str(adapter))


def test_every_loading_call_says_whether_code_may_run():
    """transformers loads in one file of the core; peft's classes, which run no code, may stand elsewhere."""
    asked = []
    for path in sorted((ROOT / "core").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            word = name.rpartition(".")[2]
            if word not in ("from_pretrained", "from_config", "LLM") or name.endswith(
                ("PeftModel.from_pretrained", "PeftConfig.from_pretrained")
            ):
                continue
            asked.append((word, path.name))
            assert "trust_remote_code" in [keyword.arg for keyword in node.keywords], f"{path}:{node.lineno}"
            assert word != "from_pretrained" or path == ROOT / "core/posttrain/models/foreign.py", f"use foreign.{path}"
    assert sorted(set(asked)) == [
        ("LLM", "engine.py"),
        ("LLM", "verify_files.py"),
        ("from_config", "estimate.py"),
        ("from_config", "foreign.py"),
        ("from_pretrained", "foreign.py"),
    ]
