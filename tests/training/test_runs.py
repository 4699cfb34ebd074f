"""Whole runs on a tiny model: what they write, how they end, and how they go on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import peft
import pytest
import torch
import transformers
from posttrain import api
from posttrain.errors import CheckpointError, RunStopped, SettingsError
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer

from .conftest import ROWS

KEYS = {"step", "loss", "grad_norm", "learning_rate", "tokens", "tokens_per_second", "seconds"}


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS["sft"]))
    return file


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def losses(path: Path) -> list[float]:
    return [line["loss"] for line in lines(path / "metrics.jsonl")]


def test_the_run_directory_holds_what_it_promises(train):
    run = train("sft", eval_data=ROWS["sft"][:3], eval_every=2, steps=4)
    facts = json.loads((run.path / "run.json").read_text())
    assert {"settings", "options", "card", "versions", "hardware", "data", "started"} <= set(facts)
    metrics = lines(run.path / "metrics.jsonl")
    assert [line["step"] for line in metrics] == [1, 2, 3, 4]
    assert all(set(line) >= KEYS for line in metrics)
    assert "eval_loss" in metrics[1]
    assert "eval_loss" not in metrics[0]
    codes = [event["code"] for event in lines(run.path / "events.jsonl")]
    assert codes[0] == "started"
    assert codes[-1] == "finished"
    assert codes.count("evaluation") == 3
    assert (run.path / "checkpoints" / "step-4" / "model" / "model.safetensors").is_file()
    assert "posttrain" in (run.path / "model" / "README.md").read_text()


def test_the_tokens_of_a_step_are_those_that_the_model_reads(train):
    """A letter is a token, and each answer ends with one more."""
    count = sum(len(row["prompt"]) + len(row["completion"]) + 1 for row in ROWS["sft"])
    for line in train("sft", micro_batch_size=3).metrics:
        assert line["tokens"] == count
        assert line["tokens_per_second"] == pytest.approx(count / line["seconds"])


def test_the_saved_model_is_the_trained_one_for_transformers(train):
    run = train("sft")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(run.path / "model")
    assert loaded.config._attn_implementation == "sdpa"
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, run.model.state_dict()[name], rtol=0, atol=0)


@pytest.mark.parametrize("dora", [False, True])
def test_the_saved_adapter_is_the_trained_one_for_peft(train, dora):
    """R9, R10: reloaded adapters give the logits of the live model; DoRA's magnitudes move."""
    run = train("sft", lora=True, dora=dora, lora_rank=4)
    loaded = peft.PeftModel.from_pretrained(tiny_model(), run.path / "model").eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    run.model.eval()
    torch.testing.assert_close(loaded(input_ids=ids).logits, run.model(input_ids=ids).logits, rtol=1e-5, atol=1e-6)
    assert (loaded(input_ids=ids).logits - tiny_model().eval()(input_ids=ids).logits).abs().max() > 1e-3
    magnitudes = [p for n, p in run.model.named_parameters() if "magnitude" in n]
    assert bool(magnitudes) == dora
    fresh = train("sft", lora=True, dora=dora, lora_rank=4, learning_rate=0.0)
    before = [p for n, p in fresh.model.named_parameters() if "magnitude" in n]
    assert all(not torch.equal(one, other) for one, other in zip(magnitudes, before, strict=True))


@pytest.mark.parametrize("how", ["full", "lora", "trained-adapter"])
def test_before_the_first_step_policy_and_reference_agree(train, tmp_path, model_folder, how):
    """R1, R3: the DPO loss is ln 2, also when training goes on from an adapter, and under adapter dropout 0.5."""
    model = tiny_model()
    keywords = {"lora": how == "lora", "lora_dropout": 0.0}
    if how == "trained-adapter":
        first = api.train(
            "sft", model=str(model_folder), data=ROWS["sft"], output=str(tmp_path / "first"), lora=True, steps=3,
            learning_rate=0.05, progress="quiet", cache="off", device="cpu",
        )  # fmt: skip
        model = str(first.path / "model")
        before = losses(first.path)
        assert before[-1] < before[0]
        keywords = {}
    run = train("dpo", model=model, steps=2, learning_rate=0.0, **keywords)
    for line in run.metrics:
        assert line["loss"] == pytest.approx(0.693147, abs=1e-5)


def test_killed_runs_go_on_exactly(tmp_path, model_folder, data_file):
    """kill -9 in the middle; the resumed series equals the uninterrupted one in every bit."""
    common = [
        "--model",
        str(model_folder),
        "--data",
        str(data_file),
        "--batch-size",
        "3",
        "--steps",
        "40",
        "--seed",
        "5",
    ]
    common += ["--learning-rate", "0.01", "--lora", "--lora-dropout", "0.3", "--save-every", "5", "--cache", "off"]
    common += ["--progress", "quiet", "--device", "cpu"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run = [sys.executable, "-m", "posttrain.cli.main"]
    assert subprocess.run([*run, "train", "sft", *common, "--output", str(whole)], check=False).returncode == 0
    process = subprocess.Popen([*run, "train", "sft", *common, "--output", str(killed)])
    deadline = time.monotonic() + 120
    while not (killed / "checkpoints" / "step-10").exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len(losses(killed)) < 40
    (killed / "checkpoints" / ".step-99.tmp").mkdir()  # half a checkpoint, as a kill during saving leaves it
    assert subprocess.run([*run, "resume", str(killed)], check=False).returncode == 0
    assert losses(killed) == losses(whole)
    one, other = (p / "model" / "adapter_model.safetensors" for p in (whole, killed))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("phase", [1, 2, 3])
def test_resume_in_the_middle_of_a_batch_of_rollouts(train, phase):
    """G18, G19: several updates per rollout, several epochs of prompts."""
    keywords = {"steps": 10, "updates_per_rollout": 2, "minibatches_per_rollout": 2, "batch_size": 4, "save_total": 20}
    whole = train("grpo", **keywords, save_every=1)
    path = whole.path
    expected = losses(path)
    for checkpoint in (path / "checkpoints").iterdir():
        if int(checkpoint.name.partition("-")[2]) > 4 + phase:
            subprocess.run(["rm", "-r", str(checkpoint)], check=True)
    from posttrain_testkit.tiny import count_of_a

    api.resume(path, model=tiny_model(), tokenizer=tiny_tokenizer(), data=ROWS["grpo"], reward=count_of_a)
    assert losses(path) == expected


def test_objects_must_be_given_again(train):
    run = train("sft")
    with pytest.raises(CheckpointError, match=r"given its model as an object. Resume it from Python"):
        api.resume(run.path)


def test_a_finished_run_is_not_resumed(train):
    run = train("sft")
    with pytest.raises(CheckpointError, match=r"is complete: step 3 of 3. To go on: --steps N"):
        api.resume(run.path, model=tiny_model(), tokenizer=tiny_tokenizer(), data=ROWS["sft"])


def test_another_run_is_never_overwritten_silently(train, tmp_path):
    first = train("sft", output=str(tmp_path / "here"))
    before = (first.path / "metrics.jsonl").read_text()
    with pytest.raises(SettingsError, match="holds a run already"):
        train("sft", output=str(tmp_path / "here"))
    assert (first.path / "metrics.jsonl").read_text() == before
    train("sft", output=str(tmp_path / "here"), overwrite=True)
    other = tmp_path / "work"
    other.mkdir()
    (other / "thesis.txt").write_text("precious")
    with pytest.raises(SettingsError, match="is not empty and not a run directory"):
        train("sft", output=str(other), overwrite=True)
    assert (other / "thesis.txt").read_text() == "precious"


def test_a_loss_that_is_not_a_number_stops_the_run_and_spares_the_weights(train, monkeypatch):
    """S13."""
    from posttrain.training import step

    real = step.reduce_loss
    calls = iter(range(100))

    def poisoned(*arguments):
        loss, shares = real(*arguments)
        bad = next(calls) == 1
        return (loss * float("nan"), {n: s * float("nan") for n, s in shares.items()}) if bad else (loss, shares)

    monkeypatch.setattr(step, "reduce_loss", poisoned)
    seen = []

    class Watcher:
        from posttrain import hookimpl

        @hookimpl
        def posttrain_alert(self, run, event):
            weights = [bool(p.isfinite().all()) for p in run.policy.parameters()]
            if event["severity"] == "error":
                seen.append((event["code"], all(weights)))

    with pytest.raises(RunStopped, match="loss is nan at step 2; the step was not applied") as caught:
        train("sft", observers=[Watcher()], steps=5)
    assert caught.value.exit_code == 3
    assert seen == [("nan-origin", True)]


def test_steps_that_are_no_numbers_are_left_out_a_bounded_number_of_times(train, monkeypatch):
    """Two of them change no weight, the third ends the run, also where a resumed run meets it."""
    from posttrain.training import step

    real = step.optimiser_step
    bad = {2, 4}

    def poisoned(compute, examples, at):
        with monkeypatch.context() as patch:
            if at.number + 1 in bad:
                reduce_loss = step.reduce_loss
                patch.setattr(step, "reduce_loss", lambda *a: tuple_of_nan(reduce_loss(*a)))
            return real(compute, examples, at)

    def tuple_of_nan(found):
        loss, shares = found
        return loss * float("nan"), {name: share * float("nan") for name, share in shares.items()}

    monkeypatch.setattr("posttrain.training.loop.optimiser_step", poisoned)
    weights = {}

    class Watcher:
        from posttrain import hookimpl

        @hookimpl
        def posttrain_step_done(self, run, step, metrics):
            weights[step] = next(run.policy.parameters()).detach().clone()

    run = train("sft", observers=[Watcher()], steps=5, skip_nonfinite=2, batch_size=2)
    skipped = [line["step"] for line in run.metrics if line.get("step_skipped")]
    assert skipped == [2, 4]
    assert [number for number in (2, 3, 4, 5) if torch.equal(weights[number - 1], weights[number])] == [2, 4]
    alerts = [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines() if "nan-origin" in line]
    assert [alert["severity"] for alert in alerts] == ["warning", "warning"]
    assert "skipped, 2 of the 2 that --skip-nonfinite allows" in alerts[1]["message"]
    bad.add(6)
    with pytest.raises(RunStopped, match="loss is nan at step 6; the step was not applied"):
        api.resume(run.path, steps=7, model=tiny_model(), tokenizer=tiny_tokenizer(), data=ROWS["sft"])
    with pytest.raises(SettingsError, match="skip-nonfinite is -1"):
        train("sft", skip_nonfinite=-1)


def test_best_checkpoint_and_early_stopping(train):
    """With a learning rate that ruins the model, the best weights are the first ones, and waiting ends soon."""
    run = train(
        "sft", eval_data=ROWS["sft"], eval_every=1, save_best=True, early_stopping=2, steps=30, learning_rate=3.0,
        schedule="constant",
    )  # fmt: skip
    assert run.step < 30
    values = [e["eval_loss"] for e in run.evaluations]
    best = min(range(len(values)), key=values.__getitem__)
    assert run.progress.best == {"value": values[best], "step": run.evaluations[best]["step"], "since": 2}
    assert run.step == len(run.metrics)  # of the last step, not of the best
    assert run.evaluation(run.compute, run.progress)["loss"] == pytest.approx(values[best], rel=1e-6)


def test_the_last_batch_of_an_epoch_is_a_batch_of_its_own(train):
    """S9: 5 rows in batches of 4; the second step is that of a one-row batch."""
    rows = ROWS["sft"][:5]
    short = train("sft", data=rows, batch_size=4, steps=2, shuffle=False, learning_rate=0.0, micro_batch_size=1)
    alone = train("sft", data=rows[4:], batch_size=1, steps=1, shuffle=False, learning_rate=0.0)
    assert short.metrics[1]["loss"] == pytest.approx(alone.metrics[0]["loss"], rel=1e-6)
    assert short.metrics[1]["grad_norm"] == pytest.approx(alone.metrics[0]["grad_norm"], rel=1e-5)


@pytest.mark.parametrize("method", ["sft", "dpo", "grpo", "kto"])
def test_two_processes_equal_one(tmp_path, model_folder, data_file, method):
    """S2, S5, G7, D5, P1: unlike token counts on two ranks, the same series as one process; kto pairs over ranks."""
    file = tmp_path / "data.jsonl"
    judged = [row | {"label": place % 2 == 0} for place, row in enumerate(ROWS["sft"])]
    rows = judged if method == "kto" else ROWS[method]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[:7]))
    reward = tmp_path / "rewards.py"
    reward.write_text("def count(completions, **_):\n    return [c[:4].count('a') / 4 for c in completions]\n")
    common = ["--model", str(model_folder), "--data", str(file), "--eval-data", str(file), "--batch-size", "7"]
    common += ["--steps", "4", "--learning-rate", "0.01", "--cache", "off", "--progress", "quiet", "--device", "cpu"]
    if method == "grpo":
        common += ["--reward", f"{reward}:count", "--group-size", "3", "--max-new-tokens", "5"]
    run = [sys.executable, "-m", "posttrain.cli.main", "train", method, *common]
    for name, more in (("one", []), ("two", ["--nproc", "2", "--save-every", "2"])):
        assert subprocess.run([*run, "--output", str(tmp_path / name), *more], check=False).returncode == 0
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5, abs=1e-7)
    one, two = (lines(tmp_path / n / "events.jsonl") for n in ("one", "two"))
    evaluations = [[e["evidence"] for e in events if e["code"] == "evaluation"] for events in (one, two)]
    for first, second in zip(*evaluations, strict=True):
        for key, value in first.items():
            assert second[key] == pytest.approx(value, rel=1e-4, abs=1e-6)
    if method == "grpo":  # and a run of two processes goes on with two
        subprocess.run(["rm", "-r", str(tmp_path / "two" / "checkpoints" / "step-4")], check=True)
        before = losses(tmp_path / "two")
        assert subprocess.run([*run[:3], "resume", str(tmp_path / "two")], check=False).returncode == 0
        assert losses(tmp_path / "two") == pytest.approx(before, rel=1e-6, abs=1e-9)
        assert sum(e["code"] == "finished" for e in lines(tmp_path / "two" / "events.jsonl")) == 2


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("conversational", [False, True])
def test_a_trained_reward_model_scores_as_it_was_trained(train, tmp_path, lora, conversational):
    """The folder of a reward run, used as a reward, gives the scores of the training's own forward pass."""
    from posttrain.contract.pad import sequences_of
    from posttrain.network.chunked_head import TokenQuery
    from posttrain.rewards.model import reward_model

    rows = ROWS["reward"]
    if conversational:
        rows = [
            {k: [{"role": "user" if k == "prompt" else "assistant", "content": v}] for k, v in r.items()} for r in rows
        ]
    base = tmp_path / "base"
    tiny_model().save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    run = train("reward", model=str(base), tokenizer=None, data=rows, lora=lora, shuffle=False, batch_size=8)
    run.policy.eval()
    with torch.no_grad():
        expected = run.policy(sequences_of(run.source.examples(0)), TokenQuery())["score"][: len(rows)].tolist()
    texts = [r["chosen"] if isinstance(r["chosen"], str) else r["chosen"][0]["content"] for r in rows]
    found = reward_model(run.path / "model")([r["prompt"] for r in rows], texts)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
