"""Peak memory and losses of one model under each strategy: ``python benchmarks/strategies.py MODEL DATA``.

Starts ``posttrain train sft`` once for each case, on CPUs, and reads the run's own metrics. Adam's moments exist after
the first step, so two steps are taken.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

CASES = {
    "single": [],
    "ddp, 2 processes": ["--strategy", "ddp", "--nproc", "2"],
    "fsdp, 2 processes": ["--strategy", "fsdp", "--nproc", "2"],
    "fsdp, 2 processes, activations recomputed": ["--strategy", "fsdp", "--nproc", "2", "--gradient-checkpointing"],
    "deepspeed, ZeRO 2, 2 processes": ["--strategy", "deepspeed", "--zero-stage", "2", "--nproc", "2"],
    "deepspeed, ZeRO 3, 2 processes": ["--strategy", "deepspeed", "--zero-stage", "3", "--nproc", "2"],
    "qlora": ["--strategy", "qlora"],
    "fsdp, 3 processes, tensor parallel 3": ["--strategy", "fsdp", "--nproc", "3", "--tensor-parallel", "3"],
}


def measure(model: str, data: str, flags: list[str], folder: Path) -> dict[str, float]:
    """Losses of two steps and the highest peak of any process in MB."""
    command = [sys.executable, "-m", "posttrain", "train", "sft", "--model", model, "--data", data, "--limit", "12"]
    command += ["--batch-size", "6", "--steps", "2", "--learning-rate", "1e-5", "--cache", "off", "--device", "cpu"]
    command += ["--columns", "prompt=question,completion=answer", "--progress", "quiet", "--output", str(folder)]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "loss 1": lines[0]["loss"],
        "loss 2": lines[1]["loss"],
        "peak MB": lines[-1]["peak_memory_mb"],
        "seconds": lines[-1]["seconds"],
    }


def main() -> None:
    """Print a table."""
    model, data, *chosen = sys.argv[1:]
    print("| strategy | loss, step 1 | loss, step 2 | peak memory of a process, MB | seconds a step |")
    print("|---|---|---|---|---|")
    for name, flags in CASES.items():
        if chosen and not any(word in name for word in chosen):
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = measure(model, data, flags, Path(folder) / "run")
        row = [f"{found['loss 1']:.6f}", f"{found['loss 2']:.6f}", f"{found['peak MB']:.0f}", f"{found['seconds']:.1f}"]
        print(f"| {name} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
