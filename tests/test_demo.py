"""The demonstration: its task is what it says, its reward and its accuracy cannot be fooled, and it runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from posttrain.example import model, task

ROOT = Path(__file__).resolve().parent.parent


def test_problems_differ_and_their_answers_are_the_digits_in_order():
    rows = task.problems(2000, seed=3)
    assert len({row["prompt"] for row in rows}) == 2000
    for row in rows:
        assert len(row["prompt"]) == 6
        assert row["prompt"].endswith("=")
        assert all(left <= right for left, right in zip(row["answer"], row["answer"][1:], strict=False))
        assert all(row["answer"].count(d) == row["prompt"].count(d) for d in "0123456789")


def test_seed_decides_the_problems():
    assert task.problems(20, seed=1) == task.problems(20, seed=1)
    assert task.problems(20, seed=1) != task.problems(20, seed=2)


def test_half_of_the_demonstrations_sort_the_wrong_way_round():
    rows = [{"prompt": f"4{n}103=", "answer": "".join(sorted(f"4{n}103"))} for n in range(10)]
    shown = [row["completion"] for row in task.demonstrations(rows)]
    assert shown[:4] == ["00134", "43110", "01234", "43310"]
    assert [text == "".join(sorted(text)) for text in shown] == [True, False] * 5


def test_reward_is_one_for_exactly_the_answer():
    completions = ["01246", "64210", "0124", "012466", " 01246", ""]
    assert task.is_sorted(["40216="] * 6, completions, ["01246"] * 6) == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]


@given(st.text("0123456789=", min_size=1, max_size=12))
def test_tokenizer_gives_one_token_a_character_and_the_text_back(text):
    tokenizer = model.character_tokenizer()
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text)
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text


class Parrot(torch.nn.Module):
    """Answers from a table, in place of a model."""

    device = torch.device("cpu")

    def __init__(self, tokenizer, answers):
        super().__init__()
        self.tokenizer, self.answers = tokenizer, answers

    def generate(self, input_ids, **options):
        answers = [self.answers[self.tokenizer.decode(row)] for row in input_ids]
        ends = self.tokenizer.eos_token
        rows = [self.tokenizer(answer + ends)["input_ids"] for answer in answers]
        return torch.cat([input_ids, torch.tensor(rows)], dim=1)


@pytest.mark.parametrize("right", [0, 1, 3, 4])
def test_accuracy_counts_right_answers(right):
    tokenizer = model.character_tokenizer()
    rows = task.problems(4, seed=0)
    answers = {row["prompt"]: row["answer"] if k < right else "98765" for k, row in enumerate(rows)}
    assert model.accuracy(Parrot(tokenizer, answers), tokenizer, rows) == right / 4


def test_quick_demonstration_runs_both_stages(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT / "core"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "posttrain.example", "--quick", "--output", str(tmp_path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "Accuracy on 500 held-out problems" in result.stdout
    assert result.stdout.rstrip().endswith(f"Report, to open in a browser: {tmp_path}/grpo/report.html")
    assert "finished" in (tmp_path / "grpo" / "report.html").read_text()
    for stage, steps in (("sft", 20), ("grpo", 2)):
        lines = [json.loads(line) for line in (tmp_path / stage / "metrics.jsonl").read_text().splitlines()]
        assert len(lines) == steps
    assert all(line["reward"] >= 0 and line["grad_norm"] >= 0 for line in lines)
    samples = [json.loads(line) for line in (tmp_path / "grpo" / "samples.jsonl").read_text().splitlines()]
    assert samples
    for sample in samples:
        digits = sample["prompt"].removesuffix("=")
        assert sample["reward"] == float(sample["completion"] == "".join(sorted(digits)))
    # Twenty steps of imitation from random weights must have taught something.
    losses = [json.loads(line)["loss"] for line in (tmp_path / "sft" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.8 * losses[0]


def test_make_demo_runs_the_demonstration():
    recipe = (ROOT / "Makefile").read_text().split("\ndemo:")[1].split("\n\n")[0]
    assert "-m posttrain.example" in recipe
