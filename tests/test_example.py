"""The example: a model made on the spot, options that suit it, and every installed method trained on it."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from posttrain.authoring import render
from posttrain.catalogue.cards import Card
from posttrain.catalogue.discovery import installed
from posttrain.cli.main import main
from posttrain.errors import SettingsError
from posttrain.example import example, made, practice
from posttrain.example.model import accuracy
from posttrain.example.rows import parts
from posttrain.settings import Settings
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
METHODS = {row.name: row.card for row in installed() if row.card is not None and not row.problem}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache folder for all runs of this file: the models are made once."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # models this small lose time when threads share their work
    yield tmp_path_factory.mktemp("cache")
    torch.set_num_threads(threads)


@pytest.fixture
def train(cache, tmp_path):
    """The command on the example with more words; returns the run directory."""

    def call(method, *words, output="run"):
        folder = tmp_path / output
        common = ["--model", "example", "--data", "example", "--cache", str(cache), "--progress", "quiet"]
        assert main(["train", method, *common, "--output", str(folder), *words]) == 0
        return folder

    return call


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def start(cache):
    """The example model's weights as they are before any run."""
    return load_file(
        Path(made.resolve_example_model("example", Settings(cache=str(cache)).model)) / "model.safetensors"
    )


@pytest.mark.parametrize("name", METHODS)
def test_method_trains_on_the_example_with_no_other_flag(name, train, cache):
    folder = train(name, "--steps", "3")
    steps = lines(folder)
    assert [line["step"] for line in steps] == [1, 2, 3]
    for line in steps:
        assert math.isfinite(line["loss"])
        assert math.isfinite(line["grad_norm"])
    before, after = start(cache), load_file(folder / "model" / "model.safetensors")
    shared = before.keys() & after.keys()
    assert "model.layers.0.mlp.up_proj.weight" in shared
    assert any(not torch.equal(before[key], after[key]) for key in shared)
    assert all(tensor.isfinite().all() for tensor in after.values())
    (architecture,) = json.loads((folder / "model" / "config.json").read_text())["architectures"]
    kind = getattr(transformers, architecture)
    model, report = kind.from_pretrained(folder / "model", output_loading_info=True)
    assert not report["missing_keys"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    ids = tokenizer("40216=", return_tensors="pt")["input_ids"]  # (1, 6)
    assert ids.shape == (1, 6)
    assert model(input_ids=ids).logits.isfinite().all()


def test_there_are_methods_to_try():
    """Else the test above would pass with nothing to do."""
    assert {"sft", "reward", "dpo", "rloo", "grpo"} <= set(METHODS)


def test_adapter_of_the_example_loads_in_peft(train):
    import peft

    folder = train("dpo", "--steps", "3", "--lora", "--learning-rate", "1e-3")
    model = peft.AutoPeftModelForCausalLM.from_pretrained(folder / "model")
    weights = {name: tensor for name, tensor in model.named_parameters() if "lora_B" in name}
    assert weights
    assert all(tensor.abs().max() > 0 for tensor in weights.values())  # new adapters have zeros there
    assert model(input_ids=torch.tensor([[3, 4]])).logits.isfinite().all()


def test_imitation_teaches_the_task_and_evaluation_sees_other_rows(train, cache):
    """The example model answers at most about half rightly; sixteen steps on right answers mend that."""
    folder = train("sft", "--eval-data", "example")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    held_out = parts()[1]
    found = []
    for place in (made.resolve_example_model("example", Settings(cache=str(cache)).model), folder / "model"):
        found.append(accuracy(transformers.AutoModelForCausalLM.from_pretrained(place), tokenizer, held_out))
    assert 0.1 < found[0] < 0.7
    assert found[1] > found[0] + 0.2
    assert len(lines(folder)) == 16  # 512 rows, 32 a step, once
    facts = json.loads((folder / "run.json").read_text())
    assert (facts["data"]["rows"], facts["data"]["eval"]["rows"]) == (512, 128)


def test_reward_rises_and_is_found_without_being_named(train):
    folder = train("rloo", "--steps", "16", "--batch-size", "16")
    rewards = [line["reward"] for line in lines(folder)]
    assert sum(rewards[-4:]) > sum(rewards[:4]) + 0.4  # of 4
    for line in (folder / "samples.jsonl").read_text().splitlines():
        sample = json.loads(line)
        right = "".join(sorted(sample["prompt"].removesuffix("=")))
        assert sample["rewards"] == {"example": float(sample["completion"] == right)}


def test_a_reward_that_is_named_is_the_only_one(train, tmp_path):
    (tmp_path / "mine.py").write_text("def mine(completions):\n    return [0.25 for _ in completions]\n")
    folder = train("rloo", "--steps", "1", "--reward", f"{tmp_path}/mine.py:mine", "--batch-size", "2")
    (line,) = lines(folder)
    assert line["reward"] == 0.25
    for text in (folder / "samples.jsonl").read_text().splitlines():
        assert json.loads(text)["rewards"] == {"mine": 0.25}


def test_command_line_and_resume_in_processes_of_their_own(cache, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT / "core"), "OMP_NUM_THREADS": "1"}

    def posttrain(*words):
        command = [sys.executable, "-m", "posttrain", *words]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        return result.stdout

    posttrain("train", "grpo", "--model", "example", "--data", "example", "--steps", "2", "--schedule", "constant",
              "--batch-size", "4", "--save-every", "1", "--cache", str(cache), "--output", "run")  # fmt: skip
    assert len(lines(tmp_path / "run")) == 2
    posttrain("resume", "run", "--steps", "3")
    assert len(lines(tmp_path / "run")) == 3


def test_dry_run_and_data_check_know_the_example(cache, capsys):
    words = ["train", "grpo", "--model", "example", "--data", "example", "--cache", str(cache), "--dry-run", "--json"]
    assert main(words) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["model"]["parameters"] == 119488
    assert (plan["steps"], plan["rewards"]) == (32, ["example x 1"])  # 16 prompts a step
    assert main(["check-data", "example", "--method", "kto", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["schema"], report["rows"], report["files"]) == ("unpaired-preference", 512, ["example"])


def test_options_of_the_example_give_way_to_flags(capsys):
    assert main(["train", "cpo", "--model", "example", "--data", "example", "--print-config"]) == 0
    shown = capsys.readouterr().out
    for line in ("learning_rate: 0.0003", "batch_size: 32", "max_new_tokens: 8"):
        assert line in shown.splitlines()
    flags = ["--learning-rate", "0.5", "--batch-size", "3", "--max-new-tokens", "4"]
    assert main(["train", "cpo", "--model", "example", "--data", "example", "--print-config", *flags]) == 0
    shown = capsys.readouterr().out
    for line in ("learning_rate: 0.5", "batch_size: 3", "max_new_tokens: 4"):
        assert line in shown.splitlines()


def test_a_stream_of_prompts_is_refused_in_one_line(cache, capsys):
    words = ["--model", "example", "--data", "example", "--cache", str(cache), "--streaming", "--steps", "2"]
    assert main(["train", "rloo", *words]) == 2
    assert capsys.readouterr().err == (
        "'rloo' draws prompts at random and needs all of them at hand. Leave streaming out; the first N rows alone are "
        "read with --limit N.\n"
    )


def card(**facts):
    return Card("some", "0", "experimental", "", ("prompt",), **facts)


def test_only_the_example_model_has_other_defaults():
    assert example.example_defaults(card(), {"model": "other", "data": ["example"]}) == {}
    assert example.example_defaults(card(), {"data": ["example"]}) == {}
    assert example.example_defaults(card(), {"model": "example", "data": ["mine.jsonl"]}) == {"learning_rate": 3e-4}
    small = example.example_defaults(card(), {"model": "example", "data": ["example=2"], "batch_size": 16})
    assert small["batch_size"] == 16


@pytest.mark.parametrize(
    ("needs", "given", "expected"),
    [
        (("teacher",), None, "example-teacher"),
        (("teacher when beta",), None, "example-teacher"),
        (("teacher",), "average", None),
        (("reference",), None, None),
    ],
)
def test_the_example_teacher_stands_in_where_a_teacher_is_needed(needs, given, expected):
    options = {"model": "example", "data": ["example"], "teacher_model": given}
    assert example.example_defaults(card(needs=needs), options).get("teacher_model") == expected


@pytest.mark.parametrize("name", METHODS)
def test_page_of_each_method_has_the_command_that_is_tried_above(name):
    page = render.page(METHODS[name])
    assert f"\nposttrain train {name} --model example --data example\n" in page


def test_page_of_a_plugin_elsewhere_has_no_link_to_guides_it_lacks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["new", "fake-loss"]) == 0
    assert main(["sync", "fake-loss"]) == 0
    page = (tmp_path / "fake-loss" / "docs" / "fake-loss.md").read_text()
    assert "posttrain train fake-loss --model example --data example" in page
    assert "(what they are)" in page
    assert "](../" not in page


def test_messages_have_the_tokens_of_plain_text(cache):
    folder = made.resolve_example_model("example", Settings(cache=str(cache)).model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    talk = [{"role": "user", "content": "40216="}, {"role": "assistant", "content": "01246"}]
    ids = tokenizer.apply_chat_template(talk, return_dict=False)
    assert ids == tokenizer("40216=01246")["input_ids"] + [tokenizer.eos_token_id]
    assert tokenizer.decode(tokenizer("Hello, 5 words!\n")["input_ids"]) == "Hello, 5 words!\n"


def test_teacher_knows_what_the_example_model_guesses(cache):
    held_out = parts()[1]
    found = {}
    for name in example.MODELS:
        folder = made.resolve_example_model(name, Settings(cache=str(cache)).model)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        turned = [{"prompt": row["prompt"], "answer": row["answer"][::-1]} for row in held_out]
        told = [
            {
                "prompt": f"{row['prompt']}\n\nHere is an answer:\n\n{row['answer']}\n\nNow yours.",
                "answer": row["answer"],
            }
            for row in held_out
        ]
        found[name] = [accuracy(model, tokenizer, rows) for rows in (held_out, turned, told)]
    right, wrong, told = found["example"]
    assert right > 0.1
    assert wrong > 0.1
    assert right + wrong > 0.6  # it sorts, one way or the other
    assert told > right + 0.1  # and uses an answer that it is told
    assert found["example-teacher"][0] > 0.8
    assert found["example-teacher"][1] < 0.02


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(practice, "STEPS", 3)


def test_making_a_model_is_repeatable_and_moves_no_random_state(short):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, _ = made.make("example")
    assert torch.equal(torch.rand(3), expected)
    second, _ = made.make("example")
    other, _ = made.make("example-teacher")
    one, two, three = ([p.detach() for p in model.parameters()] for model in (first, second, other))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(one, three, strict=True))


def test_a_model_made_twice_at_the_same_time_is_the_first(short, tmp_path, monkeypatch):
    """Another process may put its copy in place while this one is still at work."""
    settings = Settings(cache=str(tmp_path))
    real = made.make

    def meanwhile(name):
        monkeypatch.setattr(made, "make", real)
        folder = Path(made.resolve_example_model(name, settings.model))
        (folder / "first").write_text("")
        return real(name)

    monkeypatch.setattr(made, "make", meanwhile)
    folder = Path(made.resolve_example_model("example", settings.model))
    assert (folder / "first").exists()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_other_names_are_left_alone_and_nothing_is_made(tmp_path):
    assert made.resolve_example_model("./example", Settings(cache=str(tmp_path)).model) == "./example"
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(SettingsError) as caught:
        made.resolve_example_model("example", Settings(cache=str(file)).model)
    assert str(caught.value) == (
        f"cache '{file}/models': cannot be written (Not a directory), but model 'example' is kept there. "
        "Choose another with --cache FOLDER."
    )


def test_listing_and_checking_the_example_import_no_torch():
    code = (
        "import sys; from posttrain.cli.main import main; assert main(['check-data', 'example']) == 0; "
        "assert main(['show', 'sft']) == 0; print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "core")}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("False False\n")
    assert "posttrain train sft --model example --data example" in result.stdout
