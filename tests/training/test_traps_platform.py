"""Traps of seeds, devices, logging and sizes that other trainers have shipped; each test names its id."""

import json
import subprocess
import sys

import pytest
import torch
from posttrain import api
from posttrain.errors import ModelError, SettingsError
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer
from safetensors.torch import load_file

from .conftest import ROWS


@pytest.fixture
def model_folder(tmp_path):
    tiny_model().save_pretrained(tmp_path / "tiny")
    tiny_tokenizer().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def adapter(run) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in run.model.named_parameters() if "lora_A" in name}


def test_d7_the_seed_decides_the_first_adapter(train):
    """D7: the seed is set before the adapter is made, whatever the global generator did until then."""
    common = {"lora": True, "lora_rank": 4, "learning_rate": 0.0, "steps": 1}
    torch.manual_seed(111)
    one = adapter(train("sft", seed=3, **common))
    torch.manual_seed(222)
    torch.rand(7)
    same = adapter(train("sft", seed=3, **common))
    other = adapter(train("sft", seed=4, **common))
    assert len(one) > 0
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)


def test_d4_logging_saving_and_evaluating_change_no_step(train):
    """D3, D4: with LoRA dropout, which draws random numbers in every training step."""
    common = {"lora": True, "lora_dropout": 0.3, "steps": 5, "batch_size": 3}
    plain = train("dpo", **common)
    busy = train("dpo", **common, save_every=1, log_every=3, eval_every=1, eval_data=ROWS["dpo"][:3])
    assert [line["loss"] for line in busy.metrics] == [line["loss"] for line in plain.metrics]
    assert [line["grad_norm"] for line in busy.metrics] == [line["grad_norm"] for line in plain.metrics]


def test_d2_the_model_is_never_wrapped(train):
    """D2: DataParallel would split each batch behind the method's back. The policy holds the model itself."""
    run = train("sft", steps=1)
    kinds = {type(module).__name__ for module in run.policy.modules()}
    assert "LlamaForCausalLM" in kinds
    assert not any("DataParallel" in kind for kind in kinds)


def test_t18_tokenizer_that_is_longer_than_the_embedding(train):
    """T18: said in words before the first step, not as an index error inside a kernel."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<one>", "<two>"])
    with pytest.raises(ModelError, match=r"^The tokenizer has 15 tokens but the model embeds 13\."):
        train("sft", tokenizer=tokenizer)


def test_d6_misspelt_key_of_a_file(model_folder, tmp_path):
    """D6: an unknown key is an error that names the closest, exit 2, one line; nothing is written."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS["sft"]))
    (tmp_path / "run.yaml").write_text(
        f"method: sft\nmodel: {model_folder}\ndata: [{tmp_path / 'rows.jsonl'}]\n"
        f"output: {tmp_path / 'run'}\nlerning_rate: 1.0\n"
    )
    command = [sys.executable, "-m", "posttrain", "train", "--config", str(tmp_path / "run.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "lerning_rate" in done.stderr
    assert "Did you mean 'learning_rate'?" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_r14_both_front_ends_give_the_same_weights(model_folder, tmp_path):
    """R14: the same options from the command line and from Python: same dtypes, same final weights."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS["sft"]))
    # plain SGD: Adam would blow a last bit of a tiny gradient up, and another process may round another way
    common = {
        "steps": 2,
        "batch_size": 3,
        "learning_rate": 0.01,
        "optimizer": "sgd",
        "cache": "off",
        "progress": "quiet",
        "device": "cpu",
    }
    flags = [word for name, value in common.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "posttrain", "train", "sft", "--model", str(model_folder), "--data", str(rows)]
    done = subprocess.run([*command, *flags, "--output", str(tmp_path / "cli")], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    run = api.train("sft", model=str(model_folder), data=str(rows), output=str(tmp_path / "python"), **common)
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}
    ours, theirs = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("python", "cli"))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", [0, -1])
def test_a_run_of_no_steps_is_refused(train, steps):
    with pytest.raises(SettingsError, match=f"^steps is {steps}"):
        train("sft", steps=steps)
