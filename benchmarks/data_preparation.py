"""Measure how long many conversations take to become tokens, beside TRL, and the memory that it takes.

``python -m benchmarks.data_preparation --peer-python PYTHON`` writes ``results/data_preparation.json``:

- "speed": ``--rows`` conversations (200,000) read from a JSONL file and tokenised by ``--processes`` processes on both
  sides, nothing cached. The peer is ``SFTTrainer`` of TRL with ``dataset_num_proc``, from reading its file to the end
  of its constructor, less what a constructor takes for two rows. Seconds by the clock, and of the processors of all
  processes.
- "memory": ``--many`` rows (1,000,000) through the same path with a cache. Resident memory of the process is read every
  tenth of a second; ``anonymous`` leaves out files that are mapped, which the system takes back when it needs room.

The conversations are sums in words, of 650 bytes at the mean. The tokenizer is that of ``--model``, a folder.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent
WORDS = [
    "the",
    "shop",
    "sells",
    "apples",
    "boxes",
    "of",
    "pears",
    "each",
    "day",
    "more",
    "than",
    "before",
    "half",
    "as",
    "many",
    "again",
    "then",
    "gives",
    "some",
    "away",
]


def write_rows(file: Path, count: int) -> None:
    """Write conversations of one question and one worked answer."""
    dice = random.Random(0)
    with file.open("w", encoding="utf-8") as out:
        for number in range(count):
            ask = f"Problem {number}. " + " ".join(dice.choices(WORDS, k=45)) + f" {dice.randrange(99)}?"
            answer = " ".join(dice.choices(WORDS, k=55)) + f" = {dice.randrange(999)}"
            turns = [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]
            out.write(json.dumps({"messages": turns}) + "\n")


def ours(file: Path, model: str, processes: int, cache: Path | None = None) -> int:
    """Read and tokenise; returns the number of tokens."""
    from posttrain.data import prepare, read_rows
    from posttrain.models.load import load_tokenizer
    from posttrain.settings import Settings

    settings = Settings(model=model, data=[str(file)], data_processes=processes)
    tokenizer = load_tokenizer(model, settings.model, None)
    rows = read_rows([str(file)], ("prompt-completion", "language-modeling"), settings.data)
    return int(prepare(rows, tokenizer, settings.data, {tokenizer.eos_token_id}, cache).report["tokens"])


def theirs(file: Path, model: str, processes: int) -> int:
    """Read and tokenise as the peer's trainer does; returns the number of tokens."""
    from datasets import load_dataset
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(model)
    tiny = LlamaForCausalLM(
        LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=49152)
    )
    with tempfile.TemporaryDirectory() as folder:
        data = load_dataset("json", data_files=str(file), split="train", cache_dir=f"{folder}/data")
        config = SFTConfig(f"{folder}/run", dataset_num_proc=processes, report_to=[], use_cpu=True, bf16=False)
        trainer = SFTTrainer(tiny, args=config, train_dataset=data, processing_class=tokenizer)
        return sum(len(ids) for ids in trainer.train_dataset[:1000]["input_ids"])


def timed(side: str, file: Path, model: str, processes: int) -> dict[str, float]:
    """Run one side in this process and return its seconds by the clock and of all processors."""
    begun = time.perf_counter()
    {"ours": ours, "theirs": theirs}[side](file, model, processes)
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {"seconds": time.perf_counter() - begun, "cpu_seconds": sum(u.ru_utime + u.ru_stime for u in used)}


def watched(file: Path, model: str, processes: int) -> dict[str, float]:
    """Run our side with a cache and return the largest resident memory of this process, in MB."""
    own, peaks, over = psutil.Process(), {"resident": 0, "anonymous": 0}, threading.Event()
    before = own.memory_info()

    def look() -> None:
        while not over.wait(0.1):
            now = own.memory_info()
            peaks["resident"] = max(peaks["resident"], now.rss)
            peaks["anonymous"] = max(peaks["anonymous"], now.rss - now.shared)

    thread = threading.Thread(target=look)
    thread.start()
    with tempfile.TemporaryDirectory() as folder:
        tokens = ours(file, model, processes, Path(folder))
        over.set()
        thread.join()
        files = sum(one.stat().st_size for one in Path(folder).rglob("*") if one.is_file())
    found = {name: round(value / 2**20) for name, value in peaks.items()}
    return found | {"before": round(before.rss / 2**20), "tokens": tokens, "arrays_on_disk": round(files / 2**20)}


def apart(python: str, what: str, file: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Run one measurement in a process of its own."""
    command = [python, "-m", "benchmarks.data_preparation", "--side", what, "--file", str(file)]
    command += ["--model", given.model, "--processes", str(given.processes)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{what} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure what was asked for and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--many", type=int, default=1_000_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--model", required=True, help="folder with a tokenizer that has a chat template")
    parser.add_argument("--peer-python", help="Python that can import TRL; without it only our side is measured")
    parser.add_argument("--only", choices=("speed", "memory"))
    parser.add_argument("--side", choices=("ours", "theirs", "memory"), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        measure = watched if given.side == "memory" else lambda *args: timed(given.side, *args)
        print(json.dumps(measure(given.file, given.model, given.processes)))
        return
    result = HERE / "results" / "data_preparation.json"
    found: dict[str, Any] = json.loads(result.read_text()) if result.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        few, file, many = Path(folder, "few.jsonl"), Path(folder, "rows.jsonl"), Path(folder, "many.jsonl")
        write_rows(few, 2)
        if given.only != "memory":
            write_rows(file, given.rows)
            sides = {"ours": sys.executable} | ({"theirs": given.peer_python} if given.peer_python else {})
            speed: dict[str, Any] = {"rows": given.rows, "processes": given.processes, "bytes": file.stat().st_size}
            for side, python in sides.items():
                start, whole = apart(python, side, few, given), apart(python, side, file, given)
                speed[side] = {name: round(whole[name] - start[name], 1) for name in whole}
            if "theirs" in speed:
                speed["ratio"] = {n: round(speed["theirs"][n] / speed["ours"][n], 2) for n in speed["ours"]}
            found["speed"] = speed
        if given.only != "speed":
            write_rows(many, given.many)
            found["memory"] = {"rows": given.many, "file_mb": round(many.stat().st_size / 2**20)}
            found["memory"] |= apart(sys.executable, "memory", many, given)
    print(json.dumps(found, indent=1))
    result.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
