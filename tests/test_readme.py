"""The README and the first guide: their examples run as printed (with a tiny model), their links lead somewhere."""

import contextlib
import json
import re
import shlex
import string
import subprocess
import tomllib
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from posttrain.catalogue.cards import read_card
from posttrain.cli.main import COMMANDS, main
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "docs" / "getting-started.md"]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
MODEL = "HuggingFaceTB/SmolLM2-135M"


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    """A model folder like the one that the README names, but tiny: one token a character, no chat template."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    vocabulary = {token: place for place, token in enumerate(["<pad>", "<end>", "<unk>", *string.printable])}
    tokens = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokens.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token="<pad>", eos_token="<end>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(vocabulary), **size, bos_token_id=None, eos_token_id=1)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def blocks(kind, page=PAGES[0]):
    return [text for found, text in BLOCK.findall(page.read_text()) if found == kind]


def test_the_readme_runs_as_printed_and_teaches_something(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (script,), (code,) = blocks("bash"), blocks("python")
    install, *commands = script.splitlines()
    assert install.startswith("pip install 'posttrain[stable]'")
    for line in commands:
        assert main(shlex.split(line)[1:]) == 0, line
    assert "95 % interval" in capsys.readouterr().out
    assert len([line for line in code.splitlines() if line]) == 3
    exec(compile(code, "README.md", "exec"), names := {})
    first, last = (names["run"].evaluations[place]["eval_reward"] for place in (0, -1))
    assert last > first + 0.1
    assert f"unseen problems solved: {first:.0%}, then {last:.0%}" in capsys.readouterr().out


def test_the_guides_python_example_runs_as_printed_and_teaches_something(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = (text for text in blocks("python", PAGES[1]) if "posttrain.train(" in text)
    names = {}
    exec(compile(code, "getting-started.md", "exec"), names)
    run = names["run"]
    assert run.path == Path("grpo-run")
    first, last = (found["eval_reward"] for found in (run.evaluations[0], run.evaluations[-1]))
    assert last > first + 0.15
    out = capsys.readouterr().out
    assert f"after step 0: {first:.0%} of unseen problems solved\nafter step 40: {last:.0%} of unseen" in out
    assert run.directory.alerts() == [], "nothing is wrong with the first thing that people see"
    reward = names["is_sorted"]
    assert reward(["31=", "31=", "31="], ["13", "31", ""]) == [1.0, 0.0, 0.0]


def test_first_run_on_the_command_line_works_as_printed(tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    script = blocks("bash", PAGES[1])[0]
    heredoc, commands = script.split("\nEND\n")
    subprocess.run(["bash", "-c", f"{heredoc}\nEND\n"], check=True)
    rows = [json.loads(line) for line in Path("capitals.jsonl").read_text().splitlines()]
    assert [set(row) for row in rows] == [{"prompt", "completion"}] * 3
    train, generate = commands.strip().splitlines()
    # As a shell would cut it: quotes keep words together.
    words = [re.findall(r'"[^"]*"|\S+', line) for line in (train, generate)]
    words = [[word.strip('"').replace(MODEL, str(tiny_folder)) for word in line[1:]] for line in words]
    assert main(words[0]) == 0
    metrics = [json.loads(line) for line in Path("capitals/metrics.jsonl").read_text().splitlines()]
    assert len(metrics) == 10  # epochs of one batch
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    capsys.readouterr()
    assert main(words[1]) == 0
    assert capsys.readouterr().out.endswith("\n")


def test_stable_methods_are_those_of_the_plugins():
    (line,) = [line for line in PAGES[0].read_text().splitlines() if "; stable: " in line]
    listed = re.findall(r"\[([a-z0-9-]+)\]\(docs/methods/\1\.md\)", line)
    cards = [read_card(path) for path in ROOT.glob("plugins/*/*/method.toml")]
    assert sorted(listed) == sorted(card.name for card in cards if card.tier == "stable")
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["stable"]
    assert {f"posttrain-method-{name}" for name in listed} == {Requirement(line).name for line in extra}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_links_exist(page):
    text = page.read_text()
    for command in re.findall(r"(?m)(?:^|`)posttrain ([a-z-]+)", text):
        assert command in COMMANDS
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (page.parent / target).exists(), target
    for target in re.findall(r"`(benchmarks/\S+?)`", text):
        assert (ROOT / target).exists(), target
    targets = re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text())
    assert set(re.findall(r"(?m)(?:^|`)make ([a-z-]+)", text)) <= set(targets)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_exist(page, capsys):
    for command in (["train", "sft"], ["check-data"], ["generate"], ["evaluate"], ["new"], ["watch"]):
        with contextlib.suppress(SystemExit):  # argparse ends the program after its help
            main([*command, "--help-all" if command[0] == "train" else "--help"])
    known = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))
    assert set(re.findall(r"--[a-z][a-z-]*", page.read_text())) <= known


def test_figures_are_the_measured_ones():
    results = json.loads((ROOT / "benchmarks" / "results" / "parity.json").read_text())
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    (bound,) = re.findall(r"8 steps, relative difference at most (\S+) for sft", page)
    for method in ("sft", "dpo", "reward", "grpo", "rloo"):
        cases = [case for case in results["cases"] if case["case"].startswith(method)]
        assert cases
        for case in cases:
            assert len(case["series"]) == 8
            assert max(row["difference"] for row in case["series"]) <= float(bound)
    memory = json.loads((ROOT / "benchmarks" / "results" / "head_memory.json").read_text())
    (trained, frozen) = re.findall(r"\| (\S+) times less with a trained head, (\S+) times", page)[0]
    ratios = {row["head"]: row["ratio"] for row in memory["rows"] if row["case"] == memory["default"]}
    assert [round(ratios[head], 1) for head in ("trained", "frozen")] == [float(trained), float(frozen)]
