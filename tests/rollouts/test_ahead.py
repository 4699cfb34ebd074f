"""Rollouts that run ahead: the bound, what k = 0 is, lost generators, and runs that are killed."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
from posttrain import hookimpl
from posttrain.contract.generation import Health
from posttrain.errors import GeneratorLost, RunFailed, SettingsError
from posttrain.generation.local.hf import HfGenerator
from posttrain.rollouts.ledger import audit
from posttrain.training.source import Order
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer

from .conftest import PROMPTS, ROWS, Threaded, without_times


def expected_rows(batches, batch_size=2, seed=0):
    order = Order(len(ROWS), batch_size, True, seed)
    return [row for number in range(batches) for row in order.at(number)]


@pytest.mark.parametrize("ahead", [1, 2])
def test_g23_the_bound_is_strict_and_is_used(train, ahead):
    """G23: every answer is begun by weights at most k batches old; after the first ones exactly so old."""
    made = []
    run = train("grpo", lambda compute: made.append(Threaded(compute)) or made[-1], max_staleness=ahead, steps=6)
    ages = [line["sampler_staleness_max"] for line in run.metrics]
    assert ages[0] == 0
    assert 1 <= max(ages) <= ahead
    assert len(made[0].calls) == 6  # no batch is asked for that the run would not use
    issued = [line["prompts_issued"] for line in run.metrics]
    assert issued == [2 * min(6, step + ahead) for step in range(1, 7)]  # held back at k batches ahead
    assert [line["prompts_pending"] for line in run.metrics] == [n - 2 * step for step, n in enumerate(issued, 1)]
    found = audit(run.path / "ledger.jsonl")
    assert found == {"trained": expected_rows(6), "pending": []}
    assert run.metrics[-1]["prompts_issued"] == 12
    assert "sampler_weight" in run.metrics[0]  # the correction is on without being asked for
    assert all(line["generator_idle_seconds"] >= 0 for line in run.metrics)


def test_ages_count_batches_of_rollouts_not_updates(train):
    run = train("grpo", Threaded, max_staleness=1, steps=8, updates_per_rollout=2)
    ages = [line["sampler_staleness_max"] for line in run.metrics if "sampler_staleness_max" in line]
    assert len(ages) == 4
    assert ages[0] == 0
    assert all(age in (0, 0.5, 1) for age in ages)


def test_methods_that_refill_run_ahead_too(train):
    def rewards(prompts, completions, **columns):
        return [0.5 if p in ("a", "c") else float(t.count("a")) for p, t in zip(prompts, completions, strict=True)]

    run = train("dapo", Threaded, max_staleness=1, steps=4, reward=rewards, group_size=6)
    last = run.metrics[-1]
    assert last["prompts_issued"] == last["prompts_trained"] + last["prompts_dropped"] + last["prompts_pending"]
    assert max(line["sampler_staleness_max"] for line in run.metrics) <= 1


def test_what_is_too_old_is_dropped_and_counted(train):
    """A generator that is deaf to new weights twice: what it answers meanwhile is not learnt from."""

    class Lagging(Threaded):
        deaf = 2

        def accept(self, weights):
            if weights.version == 1 and self.deaf:
                self.deaf -= 1
            else:
                super().accept(weights)

    run = train("grpo", Lagging, max_staleness=0, correction="off", steps=3)
    assert [line["prompts_trained"] for line in run.metrics] == [2, 4, 6]
    assert [line.get("prompts_dropped_stale", 0) for line in run.metrics] == [0, 4, 4]
    assert sum(run.source.collector.ledger.lengths["stale"].values()) == 4 * 4
    assert audit(run.path / "ledger.jsonl")["trained"] == [*expected_rows(1), *expected_rows(5)[6:]]


def test_a_generator_that_never_follows_ends_the_run(train):
    class Deaf(Threaded):
        def accept(self, weights):
            if weights.version == 0:
                super().accept(weights)

    with pytest.raises(RunFailed, match=r"Nothing of 3 batches of prompts could be learnt from: stale 6"):
        train("grpo", Deaf, max_staleness=1, steps=6, generation_rounds=3)


def test_running_ahead_needs_a_generator_that_can(train, options):
    with pytest.raises(SettingsError, match=r"max-staleness is 1, but this generator samples only while"):
        train("grpo", max_staleness=1, generation_process=False)


def test_a_generator_that_stays_lost_ends_the_run_with_its_words(train):
    class Gone(Threaded):
        revived = 0

        def health(self):
            return Health(-1, alive=False, facts={"error": "The server at http://h:1 does not answer."})

        def revive(self):
            self.revived += 1

    with pytest.raises(GeneratorLost, match=r"The server at http://h:1 does not answer\."):
        train("grpo", Gone, max_staleness=1)


def test_k0_in_another_process_is_the_synchronous_run(train):
    """Bit for bit: the same weights, prompts, seeds and batches give the same tokens and the same log-probs."""
    for changes in ({}, {"lora": True, "lora_rank": 4}):
        changes = changes | {"steps": 4, "updates_per_rollout": 2, "eval_data": ROWS[:3], "eval_every": 3}
        here = train("grpo", **changes)
        there = train("grpo", generation_process=True, max_staleness=0, **changes)
        assert [without_times(a) for a in there.metrics] == [without_times(b) for b in here.metrics]
        assert (there.path / "samples.jsonl").read_text() == (here.path / "samples.jsonl").read_text()


class Killer:
    """An observer that kills the generator with signal 9 once."""

    @hookimpl
    def posttrain_step_done(self, run, step, metrics):
        if step == 2:
            process = run.source.collector.producer.generator._process
            os.kill(process.pid, signal.SIGKILL)
            process.wait()


def test_a_generator_that_is_killed_is_started_anew_and_the_ledger_balances(train):
    run = train("grpo", max_staleness=1, steps=5, observers=[Killer()])
    assert [line["step"] for line in run.metrics] == [1, 2, 3, 4, 5]
    assert audit(run.path / "ledger.jsonl") == {"trained": expected_rows(5), "pending": []}
    assert all(line["sampler_staleness_max"] <= 1 for line in run.metrics)
    events = [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()]
    (lost,) = [event for event in events if event["code"] == "generator-lost"]
    assert "was killed by signal 9" in lost["message"]
    assert math.isfinite(run.metrics[-1]["loss"])


def test_a_killed_run_that_is_resumed_loses_and_repeats_no_prompt(tmp_path):
    """kill -9 of the trainer; its sampling process ends by itself, and the ledger is that of an unbroken run."""
    folder, data, reward = tmp_path / "tiny", tmp_path / "rows.jsonl", tmp_path / "rewards.py"
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    data.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    reward.write_text("def a(prompts, completions, **columns):\n    return [t.count('a') / 4 for t in completions]\n")
    path = tmp_path / "run"
    command = [sys.executable, "-m", "posttrain.cli.main"]
    flags = ["--model", folder, "--data", data, "--reward", f"{reward}:a", "--output", path, "--batch-size", 2]
    flags += ["--group-size", 4, "--max-new-tokens", 6, "--steps", 40, "--save-every", 5, "--max-staleness", 2]
    flags += ["--cache", "off", "--progress", "quiet", "--device", "cpu", "--learning-rate", 0.01]
    process = subprocess.Popen([*command, "train", "grpo", *map(str, flags)])
    deadline = time.monotonic() + 120
    while not (path / "checkpoints" / "step-10").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = audit(path / "ledger.jsonl")
    assert before["pending"]  # batches that were in the making
    assert subprocess.run([*command, "resume", str(path)], check=False).returncode == 0
    assert audit(path / "ledger.jsonl") == {"trained": expected_rows(40), "pending": []}
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 41))
    assert lines[-1]["prompts_issued"] == lines[-1]["prompts_trained"] == 80
    assert max(line["sampler_staleness_max"] for line in lines) <= 2


def test_versions_are_steps_and_the_trainer_s_weights_need_no_copy(train):
    made = []

    def generator(compute):
        made.append(HfGenerator(compute.policy.model, compute.tokenizer, compute.stop_ids, 64))
        return made[0]

    run = train("grpo", generator, steps=6)
    assert made[0].version == 5
    assert not made[0].abilities.own_weights
    events = [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()]
    (pace,) = [event for event in events if event["code"] == "pace"]  # once, from the run's own measurements
    measured = [line["generation_seconds"] for line in run.metrics[1:4]]
    assert pace["evidence"]["generation_seconds"] == sorted(measured)[1]
    assert "running ahead" in pace["message"]
