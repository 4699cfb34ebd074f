"""A run's end: what was saved is loaded again by transformers and peft, and held against the model in memory."""

import json

import peft
import pytest
import torch
from posttrain import api
from posttrain.errors import RunFailed
from posttrain.models import save
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer
from safetensors.torch import load_file, save_file

from .conftest import PAIRS, ROWS

STEPS = [{"prompt": "ab", "completions": ["c", "gg"], "labels": [True, False]}] * 2
DATA = {"sft": ROWS, "reward": PAIRS, "prm-step": STEPS, "dpo": PAIRS}
OPTIONS = {"batch_size": 2, "steps": 2, "progress": "quiet", "cache": "off", "device": "cpu", "learning_rate": 1e-2}
LORA = {"lora": True, "lora_rank": 2}


def train(base, out, method="sft", **options):
    return api.train(method, model=str(base), data=DATA[method], output=str(out), **OPTIONS | options)


def verified(path):
    events = [json.loads(line) for line in (path / "events.jsonl").read_text().splitlines()]
    return [event for event in events if event["code"] in ("model-verified", "model-differs")]


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("sft", {}),
        ("sft", LORA),
        ("sft", {"dora": True, "lora_rank": 2}),
        ("sft", {"dtype": "bfloat16"}),
        ("sft", {**LORA, "lora_targets": ["lm_head", "embed_tokens"]}),
        ("reward", {}),
        ("reward", LORA),
        ("prm-step", {}),
        ("prm-step", LORA),
    ],
)
def test_what_is_saved_is_what_was_trained(base, tmp_path, method, options):
    run = train(base, tmp_path / "run", method, **options)
    (event,) = verified(run.path)
    found = event["evidence"]
    assert event["code"] == "model-verified"
    assert found["difference"] <= (0.25 if "dtype" in options else 1e-4)
    assert found["tensors"] > 10
    assert found["tokenizer"] == "identical"
    assert found.get("greedy_tokens", 0) > 0 or method != "sft"
    assert ("padded_difference" in found) == (method == "reward")


def test_without_the_check_nothing_is_loaded(base, tmp_path):
    run = train(base, tmp_path / "run", verify_saved=False)
    assert not verified(run.path)
    assert not (run.path / "proof.json").exists()


def test_a_base_that_has_no_name_is_said_to_be_why(tmp_path):
    model = peft.get_peft_model(tiny_model(), peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    run = api.train("sft", model=model, tokenizer=tiny_tokenizer(), data=ROWS, output=str(tmp_path / "r"), **OPTIONS)
    (event,) = verified(run.path)
    assert event["evidence"]["not_loaded"].startswith("its base was handed over in memory")


def change_file(name, change):
    """A fault of saving: a tensor of a file is another one."""

    def fault(folder):
        weights = load_file(folder / name)
        key = next(key for key in sorted(weights) if "q_proj" in key or "score" in key)
        weights[key] = change(weights[key])
        save_file(weights, folder / name, {"format": "pt"})

    return fault


def edit_json(name, **values):
    def fault(folder):
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | values))

    return fault


def another_template(folder):
    (folder / "chat_template.jinja").write_text("{{ messages }}")


def another_tokenizer(folder):
    facts = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = facts["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (folder / "tokenizer.json").write_text(json.dumps(facts))


def cut_weights(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])


WHOLE, ADAPTER = "model.safetensors", "adapter_model.safetensors"


@pytest.mark.parametrize(
    ("method", "options", "fault", "says"),
    [
        ("sft", {}, change_file(WHOLE, lambda w: w.roll(1, 0)), "a log-prob differs by"),
        ("sft", {}, change_file(WHOLE, lambda w: w * (1 + 1e-6)), "tensors differ, first 'model.layers.0.self_attn.q_"),
        ("sft", {}, cut_weights, "it cannot be loaded"),
        (
            "sft",
            {},
            edit_json("generation_config.json", eos_token_id=[2, 0]),
            "it stops at the tokens [0, 2], the",
        ),
        ("sft", {}, another_template, "the chat template is another one"),
        ("sft", {}, another_tokenizer, "the tokenizer gives other tokens"),
        ("sft", LORA, change_file(ADAPTER, lambda w: w * 3), "a log-prob differs by"),
        ("sft", LORA, edit_json("adapter_config.json", lora_alpha=64), "a log-prob differs by"),
        ("sft", {"dora": True}, edit_json("adapter_config.json", use_dora=False), "a log-prob differs by"),
        ("reward", {}, change_file(WHOLE, lambda w: -w), "a score differs by"),
        ("reward", {}, edit_json("config.json", pad_token_id=2), "in a padded batch a score differs"),
        ("prm-step", {}, change_file(WHOLE, lambda w: -w), "a step's score differs by"),
    ],
)
def test_a_fault_of_saving_ends_the_run_and_keeps_its_checkpoints(
    base, tmp_path, monkeypatch, method, options, fault, says
):
    """Planted after the last file is written."""
    whole = save.save_model

    def broken(policy, tokenizer, folder, strategy):
        whole(policy, tokenizer, folder, strategy)
        fault(folder)

    monkeypatch.setattr(api, "save_model", broken)
    with pytest.raises(RunFailed, match="is not the one that was trained") as raised:
        train(base, tmp_path / "run", method, **options)
    assert says in str(raised.value)
    assert raised.value.exit_code == 1
    assert [event["severity"] for event in verified(tmp_path / "run")] == ["error"]
    assert not (tmp_path / "run" / "model").exists()
    assert (tmp_path / "run" / "checkpoints" / "step-2" / "model").is_dir()
    monkeypatch.undo()
    run = api.resume(tmp_path / "run", data=DATA[method])
    assert verified(run.path)[-1]["code"] == "model-verified"
    assert (run.path / "model").is_dir()


def test_the_check_is_of_the_numbers_that_were_trained(base, tmp_path):
    """By hand, from the saved folder: log-probs of the proof's rows."""
    import transformers

    run = train(base, tmp_path / "run")
    proof = json.loads((run.path / "proof.json").read_text())
    model = transformers.AutoModelForCausalLM.from_pretrained(run.path / "model").eval()
    for row, values in zip(proof["rows"], proof["values"], strict=True):
        with torch.no_grad():
            logps = model(torch.tensor([row])).logits[0].log_softmax(-1)
        for place, value in enumerate(values):
            assert logps[place, row[place + 1]].item() == pytest.approx(value, abs=1e-4)
