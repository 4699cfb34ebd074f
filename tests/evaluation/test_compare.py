"""``posttrain compare``: candidates, ranking by hand, a real comparison that is killed and goes on, mistakes."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from posttrain.cli.main import main
from posttrain.errors import RunFailed, SettingsError
from posttrain.evaluation import trials as trials_module
from posttrain.evaluation.candidates import SUGGESTED, read_candidates, widened
from posttrain.evaluation.compare import compare_candidates
from posttrain.evaluation.tournament import _connect, over_seeds, rank, score_of
from posttrain.evaluation.trials import Trial, run_trial
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer

ROOT = Path(__file__).resolve().parents[2]


def names(found):
    return [one.name for one in found]


def test_candidates_and_grids():
    found = read_candidates(["dpo", "dpo,beta=0.5,learning_rate=1e-3"])
    assert found[1].words == ["dpo", "--beta=0.5", "--learning-rate=1e-3"]
    assert names(widened(found[:1], ["beta=0.1,0.2", "steps=4,8"], 0, 0)) == [
        "dpo,beta=0.1,steps=4", "dpo,beta=0.1,steps=8", "dpo,beta=0.2,steps=4", "dpo,beta=0.2,steps=8",
    ]  # fmt: skip


def test_draws_are_even_on_a_logarithmic_scale_and_the_same_each_time():
    found = widened(read_candidates(["dpo"]), ["learning-rate=1e-6..1e-2"], 200, 0)
    values = [math.log10(float(one.options["learning-rate"])) for one in found]
    assert -6 <= min(values) < -5.9
    assert -2.1 < max(values) <= -2
    assert sum(value < -4 for value in values) / 200 == pytest.approx(0.5, abs=0.1)
    assert names(found) == names(widened(read_candidates(["dpo"]), ["learning-rate=1e-6..1e-2"], 200, 0))


@pytest.mark.parametrize(
    ("words", "tries", "draws", "said"),
    [
        (["dpo,beta"], [], 0, r"'beta' is no option. Expected METHOD,OPTION=VALUE"),
        (["dpo", "dpo"], [], 0, "'dpo' is named twice"),
        (["dpo"], ["beta=2..1"], 3, "no range, expected OPTION=LOW..HIGH"),
        (["dpo"], ["beta=0.1..1"], 0, "give both or neither"),
        (["dpo"], [], 3, "give both or neither"),
    ],
)
def test_candidates_that_are_none(words, tries, draws, said):
    with pytest.raises(SettingsError, match=said):
        widened(read_candidates(words), tries, draws, 0)


def test_every_suggested_method_is_one_of_ours():
    ours = {card.parent.parent.name for card in ROOT.glob("*/*/posttrain_method_*/method.toml")}
    assert {name for group in SUGGESTED.values() for name in group} <= ours


def test_students_interval_by_hand():
    """Scores 1, 2, 3: standard error 1 / sqrt(3), t of two degrees of freedom 4.303."""
    found = over_seeds([1.0, 2.0, 3.0])
    assert (found.mean, found.low) == (2.0, pytest.approx(2 - 4.303 / math.sqrt(3), abs=1e-3))
    assert over_seeds([1.0]).high == math.inf


def evaluation(*values, name="loss"):
    mean = sum(values) / len(values)
    return {
        "sets": {"data": {"figures": {name: {"mean": mean}}}},
        "values": {"data": {name: list(values)}},
        "seconds": 3.0,
    }


def test_ranking_by_hand():
    candidates = read_candidates(["sft", "gem"])
    trials = [Trial(one, seed, Path(), [], []) for one in candidates for seed in (0, 1)]
    found = dict(enumerate([evaluation(3, 2), evaluation(2, 3), evaluation(1, 2), evaluation(2, 1)]))
    low = rank(trials, found, "loss", low=True)
    assert names(one.candidate for one in low) == ["gem", "sft"]
    assert (low[0].score.mean, low[1].score.mean, low[1].seconds) == (1.5, 2.5, 3.0)
    assert low[1].behind.difference.mean == 1.0
    assert names(one.candidate for one in rank(trials, found, "loss", low=False)) == ["sft", "gem"]
    del found[3]
    assert rank(trials, found, "loss", low=True)[0].seeds == {0: 1.5}
    with pytest.raises(RunFailed, match="no figure 'reward'"):
        score_of(found[0], "reward")


@pytest.fixture
def files(tmp_path):
    """A model and pairs of which the chosen answer is the prompt backwards."""
    tiny_model(layers=1).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    for name, letters in (("train", ("ab", "ba", "aab", "bba")), ("eval", ("abb", "baa", "aaab"))):
        rows = [{"prompt": text, "chosen": text[::-1], "rejected": "ccc"[: 1 + len(text) % 3]} for text in letters]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def command(*words):
    shared = ["--model=model", "--data=train.jsonl", "--eval-data=eval.jsonl", "--batch-size=4", "--cache=off"]
    return ["compare", *words, *shared, "--device=cpu", "--metric=margin", "--output=out", "--json"]


def test_a_comparison_that_is_killed_goes_on(files):
    """The trial that was measured before is not made again, and both rank as two comparisons by hand would."""
    words = command("dpo", "simpo", "--steps=3", "--seeds=1", "--learning-rate=1e-2")
    call = [sys.executable, "-m", "posttrain.cli.main", *words]
    first = subprocess.Popen(
        call, cwd=files, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 240
    while not (done := list((files / "out").glob("trials/*/evaluation/evaluation.json"))):
        assert time.monotonic() < deadline, "no trial was measured"
        assert first.poll() is None, "the comparison ended before it was killed"
        time.sleep(0.1)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    kept = {file: file.stat().st_mtime_ns for file in done}
    said = subprocess.run(call, cwd=files, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr[-2000:]
    found = json.loads(said.stdout[said.stdout.index("{\n") :])
    assert {file: file.stat().st_mtime_ns for file in done} == kept
    assert {row["candidate"] for row in found["ranking"]} == {"dpo", "simpo"}
    scores = [row["score"]["mean"] for row in found["ranking"]]
    assert scores == sorted(scores, reverse=True)
    for row in found["ranking"]:
        (file,) = (files / "out").glob(f"trials/*{row['candidate']}-seed0/evaluation/evaluation.json")
        values = json.loads(file.read_text())["values"]["data"]["margin"]
        assert row["score"]["mean"] == pytest.approx(sum(values) / 3)
    assert "<td>dpo</td>" in (files / "out" / "compare.html").read_text()


def test_trials_that_do_worst_are_ended_early(files, capsys, monkeypatch):
    """A learning rate of nothing is behind at the first rung, and its trial takes no further step."""
    monkeypatch.chdir(files)
    words = command("dpo", "--steps=9", "--seeds=1", "--halving", "--try=learning-rate=1e-2,1e-12")
    handler = signal.getsignal(signal.SIGINT)
    assert main(words) == 0
    assert signal.getsignal(signal.SIGINT) is handler, "Ray Tune's own stayed"
    found = json.loads(capsys.readouterr().out)
    assert found["ranking"][0]["options"] == {"learning-rate": "1e-2"}
    assert found["ended"] == {"dpo,learning-rate=1e-12, seed 0": 1}


def test_a_training_that_outruns_the_checks_is_measured_at_every_rung(tmp_path, monkeypatch):
    """All checkpoints appear between two checks, or before the first one; the rungs are reported all the same."""
    trainer = (
        "import json, sys; from pathlib import Path\n"
        "place = Path(next(word for word in sys.argv if word.startswith('--output=')).split('=')[1])\n"
        "measures = 'evaluate' in sys.argv\n"
        "for step in (1, 3, 9) if not measures else ():\n"
        "    folder = place / 'checkpoints' / f'step-{step}'; folder.mkdir(parents=True)\n"
        "    (folder / 'state.json').write_text('{}')\n"
        "place.mkdir(parents=True, exist_ok=True)\n"
        "(place / 'evaluation.json').write_text('{}') if measures else (place / 'model').mkdir()\n"
    )
    monkeypatch.setattr(trials_module, "_COMMAND", (sys.executable, "-c", trainer))
    trial = Trial(read_candidates(["dpo"])[0], 0, tmp_path / "trial", [], [], steps=9, rungs=(1, 3))
    for _ in ("trained now", "trained before"):
        reached = []
        run_trial(trial, lambda step, found: reached.append(step))  # noqa: B023
        assert reached == [1, 3]
        shutil.rmtree(trial.result)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "No method was given. Name some, or have them suggested"),
        (["nosuch"], "No method is called 'nosuch'"),
        (["dpo,betta=1"], "Candidate 'dpo,betta=1': Unknown option 'betta'"),
        (["dpo", "--halving"], "--halving needs --steps of at least 9"),
        (["dpo", "--seeds=0"], "seeds is 0, expected at least 1"),
    ],
)
def test_mistakes_are_one_line(files, monkeypatch, capsys, words, said):
    monkeypatch.chdir(files)
    assert main(command(*words)) == 2
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.parametrize("address", ["127.0.0.1:9", "nowhere.invalid:6379", "127.0.0.1:99999", "nonsense"])
def test_a_cluster_that_is_not_there_is_named(address):
    """Port 9 discards, where anything listens; Ray itself would try for minutes."""
    pytest.importorskip("ray", reason="needs the extra posttrain[ray]")
    with pytest.raises(RunFailed, match=rf"No Ray cluster was reached at '{address}': .+ Start one with 'ray start"):
        _connect(address)


def test_another_comparison_in_the_folder_is_kept(tmp_path):
    (tmp_path / "asked.json").write_text("{}")
    with pytest.raises(SettingsError, match="holds another comparison"):
        compare_candidates(read_candidates(["dpo"]), [], [], tmp_path)
    (tmp_path / "asked.json").write_text("[")
    with pytest.raises(SettingsError, match=r"asked\.json' is not valid JSON .*Delete it to begin the comparison anew"):
        compare_candidates(read_candidates(["dpo"]), [], [], tmp_path)
    (tmp_path / "asked.json").rename(tmp_path / "mine.txt")
    with pytest.raises(SettingsError, match="not empty and holds no comparison"):
        compare_candidates(read_candidates(["dpo"]), [], [], tmp_path)
