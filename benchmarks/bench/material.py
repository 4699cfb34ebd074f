"""The rows that both sides train on, written once for a benchmark.

Public data in a plain form: questions and answers of GSM8K, preference pairs, tasks drawn from reasoning-gym. The
files are not part of this repository; ``--gsm8k`` and ``--preferences`` say where they lie.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.bench.cases import MAX_LENGTH

ROOT = Path(__file__).resolve().parents[2]
GSM8K = ROOT.parent / "shared" / "data" / "gsm8k-train.jsonl"
PREFERENCES = ROOT.parent / "shared" / "data" / "preferences.jsonl"
MODEL = Path("~/.cache/posttrain/smollm2-135m").expanduser()
ROWS = 256
CHARACTERS = 1200
"""Longest preference pair, prompt and both answers together, as in the figures known of the peer."""
TASK = "chain_sum"


def write(folder: Path, model: Path, gsm8k: Path, preferences: Path) -> None:
    """Write the rows of every case into ``folder``; ends the program where there is no data to make them of."""
    for path, flag, what in (
        (model / "config.json", "--model", "a transformers folder of SmolLM2-135M-Instruct"),
        (gsm8k, "--gsm8k", "JSONL with question and answer"),
        (preferences, "--preferences", "JSONL with prompt, chosen and rejected"),
    ):
        if not path.is_file():
            sys.exit(f"'{path}' does not exist. Expected {what}; name yours with {flag}.")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    length: Callable[[str], int] = lambda text: len(tokenizer(text)["input_ids"])  # noqa: E731  (typed)
    _json_lines(folder / "sft.jsonl", _questions(_rows(gsm8k), length))
    _json_lines(folder / "preference.jsonl", _pairs(_rows(preferences), length))
    _json_lines(folder / "prompts.jsonl", _tasks())


def _questions(rows: Iterable[dict[str, str]], length: Callable[[str], int]) -> Iterator[dict[str, Any]]:
    for row in rows:
        prompt, completion = f"Question: {row['question']}\nAnswer:", f" {row['answer']}"
        if length(prompt + completion) < MAX_LENGTH:
            yield {"prompt": prompt, "completion": completion}


def _pairs(rows: Iterable[dict[str, str]], length: Callable[[str], int]) -> Iterator[dict[str, Any]]:
    for row in rows:
        prompt = f"Question: {row['prompt'].strip()}\nAnswer:"
        answers = {role: f" {row[role].strip()}" for role in ("chosen", "rejected")}
        short = sum(map(len, (row["prompt"], *answers.values()))) < CHARACTERS
        differ = answers["chosen"] != answers["rejected"]  # posttrain leaves equal ones out, and the sides share rows
        if short and differ and all(length(prompt + answer) < MAX_LENGTH for answer in answers.values()):
            yield {"prompt": prompt, **answers}


def _tasks() -> Iterator[dict[str, Any]]:
    import reasoning_gym

    for entry in reasoning_gym.create_dataset(TASK, size=ROWS, seed=0):
        yield {"prompt": [{"role": "user", "content": entry["question"]}], "answer": entry["answer"]}


def _rows(file: Path) -> Iterator[dict[str, str]]:
    with file.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _json_lines(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in islice(rows, ROWS)), encoding="utf-8")
