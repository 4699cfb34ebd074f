"""Damaged JSON of runs and models: every command that reads it says in one line which file, and what helps."""

import json
import os
import resource
import shutil
import signal

import pytest
from posttrain import api
from posttrain.assembly.estimate import sizes_of
from posttrain.catalogue.cards import read_card
from posttrain.cli.main import main
from posttrain.errors import CardError, CheckpointError, ModelError
from posttrain.models.adapters import adapter_base
from posttrain.models.config_files import adapter_head, check_folder, read_config
from posttrain.models.load import describe
from posttrain.models.reload import head_of
from posttrain.rewards.judge_model import has_reward_head
from posttrain.runs.directory import RunDirectory
from posttrain.runs.json_file import metrics_fault, read_lines, read_object
from posttrain.runs.manifest import find_damage, write_manifest
from posttrain.runs.tail import Tail
from posttrain.settings import Settings
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer

COMMON = {"steps": 2, "batch_size": 2, "save_every": 1, "progress": "quiet", "cache": "off", "report": False}
#: Damages that a command is given; whatever reads has all of them (tests of the readers, below).
FEW = ("truncated", "list", "directory")


def strings(path):
    """Every value a text, in the file's own form."""
    text = path.read_text()
    found = json.loads(text.splitlines()[-1] if path.suffix == ".jsonl" else text)
    path.write_text(json.dumps(dict.fromkeys(found, "x")) + "\n")


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_text(""),
    "list": lambda path: path.write_text("[1, 2]"),
    "string": lambda path: path.write_text('"text"'),
    "null": lambda path: path.write_text("null"),
    "nan": lambda path: path.write_text("NaN"),
    "not-utf8": lambda path: path.write_bytes(b'{"a": "\xff\xfe"}\n'),
    "deep": lambda path: path.write_text("[" * 100_000),
    "directory": lambda path: (path.unlink(), path.mkdir()),
    "unreadable": lambda path: path.chmod(0),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    tiny_model().save_pretrained(folder / "tiny")
    tiny_tokenizer().save_pretrained(folder / "tiny")
    (folder / "rows.jsonl").write_text(json.dumps({"prompt": "ab", "completion": "cd"}) + "\n")
    asked = COMMON | {"model": str(folder / "tiny"), "data": str(folder / "rows.jsonl")}
    api.train("sft", output=str(folder / "full"), **asked)
    api.train("sft", output=str(folder / "lora"), lora=True, **asked)
    return folder


@pytest.fixture
def damaged(runs, tmp_path, request):
    """Copies of a run with one of its files damaged, one after the other."""

    def copies(run, name, damages=FEW):
        for damage in damages:
            if damage == "unreadable" and os.geteuid() == 0:
                continue
            shutil.rmtree(tmp_path / "run", ignore_errors=True)
            shutil.copytree(runs / run, tmp_path / "run")
            (DAMAGES | {"strings": strings})[damage](tmp_path / "run" / name)
            yield damage, tmp_path / "run"

    return copies


MODEL = ("generate", "{run}/model", "--prompt", "a", "--max-new-tokens", "2")
CHECK = ("check-data", "{rows}", "--model", "{run}/model", "--method", "sft")
TRAIN = ("train", "sft", "--model", "{run}/model", "--data", "{rows}", "--steps", "1", "--dry-run")
COMMANDS = [
    ("full", "run.json", ("resume", "{run}", "--steps", "3")),
    ("full", "run.json", ("status", "{run}")),
    ("full", "run.json", ("explain", "{run}")),
    ("full", "run.json", ("report", "{run}", "--output", "{run}/page.html")),
    ("full", "run.json", ("watch", "{run}", "--once")),
    ("full", "run.json", ("verify", "{run}")),
    ("full", "run.json", ("evaluate", "{run}")),
    ("lora", "run.json", ("export", "{run}", "{run}/whole")),
    ("full", "proof.json", ("verify", "{run}")),
    *[
        ("full", f"model/{name}", words)
        for name in ("config.json", "generation_config.json", "tokenizer_config.json")
        for words in (MODEL, CHECK, ("verify", "{run}"))
    ],
    ("full", "model/config.json", TRAIN),
    ("full", "model/config.json", ("evaluate", "{run}")),
    ("lora", "model/adapter_config.json", MODEL),
    ("lora", "model/adapter_config.json", CHECK),
    ("lora", "model/adapter_config.json", TRAIN),
    ("lora", "model/adapter_config.json", ("verify", "{run}")),
    ("lora", "model/adapter_config.json", ("export", "{run}", "{run}/whole")),
    ("lora", "model/adapter_config.json", ("evaluate", "{run}")),
]
#: A folder in place of the file is a folder without it, for these.
WITHOUT = {("run.json", command) for command in ("report", "watch", "verify", "evaluate", "export")}
WITHOUT |= {("adapter_config.json", command) for command in ("generate", "check-data", "train", "verify", "export")}
WITHOUT |= {("adapter_config.json", "evaluate")}


@pytest.mark.parametrize(
    ("run", "name", "words"), COMMANDS, ids=[f"{name.rpartition('/')[2]}-{words[0]}" for _, name, words in COMMANDS]
)
def test_a_command_names_the_damaged_file(damaged, runs, capsys, run, name, words):
    short = name.rpartition("/")[2]
    for damage, folder in damaged(run, name):
        capsys.readouterr()
        code = main([word.format(run=folder, rows=runs / "rows.jsonl") for word in words])
        said = capsys.readouterr().err.strip().splitlines()
        assert code == 2, damage
        said = [line for line in said if not line.endswith(": data")]  # which rows an evaluation is at
        assert len(said) == 1, (damage, said)
        if damage != "directory" or (short, words[0]) not in WITHOUT:
            assert (short if damage == "directory" else f"{folder / name}'") in said[0], damage


@pytest.mark.parametrize("command", ["status", "explain", "report", "watch", "resume"])
@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl"])
def test_a_command_names_the_damaged_line(damaged, capsys, name, command):
    more = {"report": ["--output", "{}/page.html"], "watch": ["--once"], "resume": ["--steps", "3"]}.get(command, [])
    damages = ("list", "directory", *(("strings",) if name == "metrics.jsonl" else ()))
    for damage, folder in damaged("full", name, damages):
        capsys.readouterr()
        assert main([command, str(folder), *[word.format(folder) for word in more]]) == 2, damage
        said = capsys.readouterr().err.strip()
        assert "\n" not in said
        assert f"'{folder / name}'" in said, damage
        assert damage == "directory" or "line 1 " in said


def test_a_line_that_a_kill_has_cut_is_no_damage(runs, tmp_path, capsys):
    shutil.copytree(runs / "full", tmp_path / "run")
    for name in ("metrics.jsonl", "events.jsonl"):
        with (tmp_path / "run" / name).open("a") as file:
            file.write('{"step": 3, "lo')
    assert main(["status", str(tmp_path / "run")]) == 0
    assert main(["watch", str(tmp_path / "run"), "--once"]) == 0
    assert main(["resume", str(tmp_path / "run"), "--steps", "3", "--progress", "quiet"]) == 0
    lines = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines == [1, 2, 3]


@pytest.mark.parametrize("name", ["state.json", "manifest.json"])
def test_a_damaged_checkpoint_is_passed_over(damaged, capsys, name):
    for damage, folder in damaged("full", f"checkpoints/step-2/{name}", ("list", "directory")):
        if name == "state.json" and damage != "directory":
            write_manifest(folder / "checkpoints" / "step-2")  # the file is as it was when it was written
        capsys.readouterr()
        code = main(["resume", str(folder), "--steps", "3", "--progress", "quiet"])
        said = capsys.readouterr().err
        if code == 0:
            said = (folder / "events.jsonl").read_text()
            assert "step-2' is passed over: " in said or damage == "directory", damage
        else:
            assert code == 2
            assert len(said.strip().splitlines()) == 1
            assert name in said


@pytest.mark.parametrize("damage", ["truncated", "empty", "list", "not-utf8", "deep", "directory"])
def test_a_damaged_card_is_named(tmp_path, damage):
    (tmp_path / "method.toml").write_text('name = "x"\nversion = "1.0.0"\nsummary = "y')
    DAMAGES[damage](tmp_path / "method.toml")
    with pytest.raises(CardError, match=r"method\.toml: ") as found:
        read_card(tmp_path / "method.toml")
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("damage", [*DAMAGES, "strings"])
@pytest.mark.parametrize("name", ["config.json", "adapter_config.json"])
def test_what_reads_a_model_folder(tmp_path, name, damage):
    if damage == "unreadable" and os.geteuid() == 0:
        pytest.skip("root reads everything")
    (tmp_path / name).write_text(json.dumps({"architectures": ["X"], "base_model_name_or_path": 3, "dtype": "float32"}))
    (DAMAGES | {"strings": strings})[damage](tmp_path / name)
    readers = [lambda at: read_config(at, name), check_folder, head_of, lambda at: has_reward_head(str(at))]
    if name == "config.json":
        readers += [lambda at: describe(str(at)), lambda at: sizes_of(Settings(model=str(at)).model)]
    else:
        readers += [adapter_head, lambda at: adapter_base(str(at))]
    for reader in readers:
        said = refusal(reader, tmp_path)
        assert said.splitlines() == [said] or damage in ("strings", "directory")
        assert name in said or damage in ("strings", "directory")


def refusal(reader, folder):
    """The text of the error; empty where there is none."""
    try:
        reader(folder)
    except ModelError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ({}, "has None as its weight_map, expected names of files"),
        ({"weight_map": {"a": 3}}, "has {'a': 3} as its weight_map, expected names of files"),
        ({"weight_map": {"a": "b.safetensors"}}, "names 1 files that are not there, first 'b.safetensors'"),
    ],
)
def test_an_index_of_weights(tmp_path, index, says):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"model\.safetensors\.index\.json'") as found:
        check_folder(tmp_path)
    assert says in str(found.value)


def test_a_stored_option_of_another_type(runs, tmp_path):
    shutil.copytree(runs / "full", tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    facts["settings"]["max_length"] = [1]
    (tmp_path / "run" / "run.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match=r"run\.json': Option 'max_length' is \[1\], expected a whole number"):
        api.resume(str(tmp_path / "run"))


def test_the_fault_and_what_helps(tmp_path):
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(CheckpointError) as found:
        read_object(tmp_path / "a.json", CheckpointError, "Copy it again.")
    assert str(found.value) == f"'{tmp_path / 'a.json'}' holds [1], expected a JSON object. Copy it again."
    (tmp_path / "a.jsonl").write_text('{"step": 1}\n{"step": true}\n')
    with pytest.raises(CheckpointError) as found:
        list(read_lines(tmp_path / "a.jsonl", metrics_fault))
    where = f"'{tmp_path / 'a.jsonl'}' line 2 has True as its step, expected a whole number."
    assert str(found.value) == f"{where} Delete that line, or move the file away."


@pytest.mark.parametrize("damage", DAMAGES)
def test_all_readers_name_every_damage(tmp_path, damage):
    if damage == "unreadable" and os.geteuid() == 0:
        pytest.skip("root reads everything")
    file = tmp_path / "a.jsonl"
    file.write_text('{"step": 1, "loss": 0.5}\n')
    DAMAGES[damage](file)
    if damage in ("string", "null", "nan", "list", "deep"):
        file.write_text(file.read_text() + "\n")
    is_line = damage not in ("empty", "truncated")  # no line, and half of one, are no damage there
    readers = [lambda: read_object(file, CheckpointError, "Copy it.")]
    readers += [lambda: list(read_lines(file, metrics_fault)), Tail(file, metrics_fault).new] if is_line else []
    for reader in readers:
        with pytest.raises(CheckpointError, match=r"a\.jsonl' ") as found:
            reader()
        assert "\n" not in str(found.value)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_manifest_is_seen(tmp_path, damage):
    if damage == "unreadable" and os.geteuid() == 0:
        pytest.skip("root reads everything")
    (tmp_path / "state.json").write_text('{"step": 1}')
    (tmp_path / "training.pt").write_bytes(b"12")
    write_manifest(tmp_path)
    assert find_damage(tmp_path) is None
    DAMAGES[damage](tmp_path / "manifest.json")
    found = find_damage(tmp_path)
    assert found
    assert "\n" not in found


def test_a_tail_counts_lines(tmp_path):
    file, tail = tmp_path / "a.jsonl", Tail(tmp_path / "a.jsonl", metrics_fault)
    file.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert [line["step"] for line in tail.new()] == [1, 2]
    with file.open("a") as more:
        more.write('ep": 3}\nno\n')
    with pytest.raises(CheckpointError, match=r"a\.jsonl' line 4 is not valid JSON"):
        tail.new()


def test_a_text_with_other_line_breaks_survives_a_resume(tmp_path):
    directory = RunDirectory(tmp_path)
    for step in (1, 2):
        directory.sample({"step": step, "completion": "a\u2028b\x85c\x0bd"})
    directory.rewind(1)
    (line,) = (tmp_path / "samples.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    assert json.loads(line)["completion"] == "a\u2028b\x85c\x0bd"


def test_a_full_disk_leaves_no_half_line(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.metrics({"step": 1})
    before, (soft, hard) = (tmp_path / "metrics.jsonl").read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, hard))
    try:
        with pytest.raises(Exception, match=r"metrics\.jsonl"):
            directory.metrics({"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
