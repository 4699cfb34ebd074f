"""The command line: exit codes, one-line errors, and what each command hands to the library."""

import json
import sys
from types import ModuleType

import pytest
from posttrain import __version__
from posttrain.cli import main as cli
from posttrain.cli.main import main
from posttrain.errors import DataError, RunFailed, RunStopped


@pytest.fixture
def api(monkeypatch):
    """A stand-in for the library that records calls."""
    module = ModuleType("posttrain.api")
    module.calls = []
    for name, answer in (("train", None), ("plan", {"steps": 7}), ("resume", None), ("generate_text", ["four"])):
        vars(module)[name] = lambda *a, _name=name, _answer=answer, **k: module.calls.append((_name, a, k)) or _answer
    monkeypatch.setitem(sys.modules, "posttrain.api", module)
    monkeypatch.setattr("posttrain.api", module, raising=False)
    return module


def error_of(capsys, *words):
    assert main(list(words)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err.strip()


@pytest.mark.parametrize("words", [["train", "fake"], ["train", "--method", "fake"], ["train", "--method=fake"]])
def test_train_hands_over_settings_and_options(site, api, words):
    site.add("fake")
    flags = ["--model", "m", "--data", "a", "--data=b", "--steps", "3", "--beta", "-1e-3", "--no-shuffle"]
    assert main([*words, *flags]) == 0
    ((name, (method, settings, options), _),) = api.calls
    assert (name, method, options) == ("train", "fake", {"beta": -1e-3})
    assert (settings.model.model, settings.data.data, settings.length.steps, settings.data.shuffle) == (
        "m",
        ["a", "b"],
        3,
        False,
    )


def test_train_from_a_folder(site, api, tmp_path, monkeypatch):
    site.add("fake").rename(tmp_path / "posttrain_method_fake")
    monkeypatch.chdir(tmp_path)
    assert main(["train", "./posttrain_method_fake", "--model", "m"]) == 0
    assert api.calls[0][1][0] == "./posttrain_method_fake"


def test_file_names_method_and_options_and_flags_win(site, api, tmp_path):
    site.add("fake")
    (tmp_path / "run.yaml").write_text("method: fake\nsteps: 5\nbeta: 0.5\nmodel: m\n")
    assert main(["train", "--config", str(tmp_path / "run.yaml"), "--steps", "6"]) == 0
    _, (method, settings, options), _ = api.calls[0]
    assert (method, settings.length.steps, options) == ("fake", 6, {"beta": 0.5})


def test_print_config_and_dry_run_start_nothing(site, api, capsys):
    site.add("fake")
    assert main(["train", "fake", "--model", "m", "--print-config"]) == 0
    assert "beta: 0.1" in capsys.readouterr().out
    assert api.calls == []
    assert main(["train", "fake", "--model", "m", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"steps": 7}
    assert [call[0] for call in api.calls] == ["plan"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["train"], "No method was given. Write: posttrain train METHOD. All methods: posttrain list-methods"),
        (
            ["train", "fake", "--bta", "1"],
            "Unknown option '--bta'. Did you mean '--beta'?  All flags: posttrain train fake",
        ),
        (["train", "fake", "--no-lorra"], "Unknown option '--no-lorra'. Did you mean '--no-lora'?"),
        (["train", "fake", "--steps"], "Flag '--steps' needs a value: a whole number or none."),
        (["train", "fake", "--steps", "--lora"], "Flag '--steps' needs a value: a whole number or none."),
        (["train", "fake", "--steps", "x"], "Option 'steps' is 'x', expected a whole number or none."),
        (["train", "fake", "--no-lora=1"], "Flag '--no-lora' takes no value, it was given '1'."),
        (["train", "fake", "extra"], "Unexpected word 'extra'. For several values repeat the flag: --data a --data b"),
        (["train", "fake", "--method", "other"], "Two methods were given: fake and other. A run has one."),
        (["trian"], "Unknown command 'trian'. Did you mean 'train'?  All commands: posttrain --help"),
        (["list-methods", "--tier", "gold"], "Argument --tier: invalid choice: 'gold'"),
        (["show"], "The following arguments are required: method.  Flags: posttrain show --help"),
        (["check-data"], "No data were given. Write: posttrain check-data FILE... [--method METHOD]"),
        (["resume"], "One run directory is wanted, 0 were given. Write: posttrain resume RUN"),
        (["train", "fake", "--output", ""], "--output is '', which names nothing. Leave it out, or give it a value."),
        (["train", "fake", ""], "a word of the command is '', which names nothing. Leave it out, or give it a value."),
        (["resume", ""], "a word of the command is '', which names nothing."),
        (["export", "", "x"], "model is '', which names nothing. Leave it out, or give it a value."),
        (["status", "a", ""], "run is '', which names nothing. Leave it out, or give it a value."),
        (["report", "a", "--output="], "--output is '', which names nothing. Leave it out, or give it a value."),
        (["evaluate", "a", "--output="], "--output is '', which names nothing. Leave it out, or give it a value."),
        (["new", "Bad_Name"], "Name 'Bad_Name' is not lower-case words joined by hyphens, such as my-loss."),
    ],
)
def test_mistakes_are_one_line_and_exit_2(site, api, capsys, words, text):
    site.add("fake")
    assert error_of(capsys, *words).startswith(text)
    assert api.calls == []


@pytest.mark.parametrize(("error", "code"), [(DataError("no"), 2), (RunFailed("nan"), 1), (RunStopped("kl"), 3)])
def test_exit_codes_follow_the_error(site, api, capsys, error, code):
    def fail(*_, **__):
        raise error

    site.add("fake")
    api.train = fail
    assert main(["train", "fake", "--model", "m"]) == code
    assert capsys.readouterr().err == f"{error}\n"
    with pytest.raises(type(error)):
        main(["train", "fake", "--model", "m", "--debug"])


def test_interrupt_is_130(monkeypatch, capsys):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_dispatch", interrupt)
    assert main(["list-methods"]) == 130
    assert capsys.readouterr().err == "Interrupted.\n"


def test_fault_of_the_program_keeps_its_traceback(site, api):
    def fault(*_, **__):
        raise ZeroDivisionError

    site.add("fake")
    api.train = fault
    with pytest.raises(ZeroDivisionError):
        main(["train", "fake", "--model", "m"])


def test_reader_that_goes_away_is_no_error(site):
    for number in range(3):
        site.add(f"fake-{number}")
    code = (
        "import os, sys\nread, write = os.pipe()\nos.close(read)\nos.dup2(write, 1)\n"
        "from posttrain.cli.main import main\nsys.exit(main(['list-methods']))"
    )
    result = site.run(code=code)
    assert (result.returncode, result.stderr) == (141, "")


def test_resume_casts_its_changes(api, tmp_path, capsys):
    (tmp_path / "run.json").write_text('{"settings": {"nproc": 1}}')
    assert main(["resume", str(tmp_path), "--steps", "20", "--progress", "quiet"]) == 0
    assert api.calls == [("resume", (str(tmp_path),), {"take_over": False, "steps": 20, "progress": "quiet"})]
    assert error_of(capsys, "resume", "runs/a") == "'runs/a' is not a run directory: it has no run.json."


def test_generate_reads_prompts_from_everywhere(api, tmp_path, capsys):
    (tmp_path / "p.txt").write_text("two\n\n")
    api.generate_text = lambda model, prompts, **_: [prompt.upper() for prompt in prompts]
    assert main(["generate", "m", "--prompt", "one", "--prompts", str(tmp_path / "p.txt"), "--json"]) == 0
    assert [row["completion"] for row in json.loads(capsys.readouterr().out)] == ["ONE", "TWO"]
    assert error_of(capsys, "generate", "m", "--prompts", "absent.txt").startswith("Prompt file 'absent.txt'")


def test_broken_plugin_is_one_row_of_the_listing(site, capsys):
    site.add("fake-good")
    site.add("fake-bad", card="name = 3")
    assert main(["list-methods"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["fake-good"].split()[1] == "experimental"
    assert lines["fake-bad"].split()[1] == "broken"
    assert "'name' is 3" in lines["fake-bad"]


def test_filters_of_the_listing(site, capsys):
    site.add("fake-pairs")
    site.add("fake-prompts", schema="prompt")
    assert main(["list-methods", "--schema", "prompt", "--json"]) == 0
    names = {row["name"] for row in json.loads(capsys.readouterr().out)}
    assert "fake-prompts" in names
    assert "fake-pairs" not in names


def test_available_lists_what_could_be_installed(capsys):
    assert main(["list-methods", "--available", "--tier", "stable", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in rows} >= {"sft", "dpo", "reward", "grpo", "rloo"}


def test_show_tells_options_and_defaults(site, capsys):
    site.add("fake")
    assert main(["show", "fake", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["options"] == [
        {"name": "beta", "flag": "--beta", "type": "a number", "default": 0.1, "help": "Strength."}
    ]
    assert {row["name"]: row["default"] for row in facts["shared_options"]}["batch_size"] == 8
    assert main(["show", "fake"]) == 0
    assert "--beta  a number [0.1]" in capsys.readouterr().out


def test_audit_hashes_every_file(site, capsys):
    package = site.add("fake")
    record = site.path / "posttrain_method_fake-1.2.0.dist-info" / "RECORD"
    record.write_text("posttrain_method_fake/__init__.py,,\nposttrain_method_fake/method.toml,,\nabsent.py,,\n")
    (package / "method.toml").write_bytes((package / "method.toml").read_bytes().replace(b"Summary", b"Text"))
    (package / "__init__.py").write_bytes(b"abc")
    assert main(["plugins", "audit", "--json"]) == 0
    (row,) = [row for row in json.loads(capsys.readouterr().out) if row["name"] == "fake"]
    # FIPS 180-2, appendix B.1: the digest of "abc"
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert row["files"]["posttrain_method_fake/__init__.py"] == digest
    assert set(row["files"]) == {"posttrain_method_fake/__init__.py", "posttrain_method_fake/method.toml"}
    assert (row["distribution"], row["version"], row["tier"]) == ("posttrain-method-fake", "1.2.0", "experimental")


def test_text_that_the_terminal_cannot_show_is_escaped(site, monkeypatch):
    site.add("fake").rename(site.path / "fäke")
    card = site.path / "fäke" / "method.toml"
    card.write_text(card.read_text(encoding="utf-8").replace("Summary", "Größe"), encoding="utf-8")
    for name, value in (("LC_ALL", "C"), ("PYTHONUTF8", "0"), ("PYTHONCOERCECLOCALE", "0")):
        monkeypatch.setenv(name, value)
    shown = site.run("show", str(site.path / "fäke"))
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith("fake 1.2.0 (experimental): Gr\\xf6\\xdfe of fake.")
    absent = site.run("show", str(site.path / "ä"))
    assert absent.returncode == 2
    assert absent.stderr.count("\n") == 1


def test_version_and_help(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"posttrain {__version__}\n"
    assert main([]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert listed == list(cli.COMMANDS)


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_every_command_has_help(command, capsys):
    try:
        code = main([command, "--help"])
    except SystemExit as leaving:  # argparse leaves by itself after printing help
        code = leaving.code
    assert code == 0
    assert f"posttrain {command}" in capsys.readouterr().out
