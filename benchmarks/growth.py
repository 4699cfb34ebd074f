"""Measure how the cost of a step grows with what it is made of, and write docs/growth.md.

    python -m benchmarks.growth           # measures, about five minutes on two cores, then writes the page
    python -m benchmarks.growth --page    # writes the page from results/growth.json alone

Each point is a process of its own with a Llama of 6 million parameters and random weights: the median seconds of its
last three steps and the largest resident memory. The exponent p of an axis is the slope of a line through the
logarithms of its last three points: cost grows like size**p there.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULT, PAGE = ROOT / "benchmarks" / "results" / "growth.json", ROOT / "docs" / "growth.md"
MODEL = {"vocab_size": 4096, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6}
HEADS = {"num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 8192}
STEPS = 5
#: Axis -> title, unit of the size, sizes, and what the exponent should be with the reason.
AXES: dict[str, tuple[str, str, tuple[int, ...], str]] = {
    "tokens": (
        "Tokens of a step (sft, rows of 128)",
        "tokens",
        (2048, 4096, 8192, 16384),
        "Seconds are linear. Memory stays: a step is cut into passes of the same number of tokens.",
    ),
    "length": (
        "Length of a row (sft, 8,192 tokens a step)",
        "tokens a row",
        (512, 1024, 2048, 4096),
        "Every token is read once whatever the length; attention's products grow with it, which shows from about the "
        "length at which they outweigh the matrices (twice the width of the layers). Memory grows once a row alone is "
        "more than a pass.",
    ),
    "group": (
        "Completions of a prompt (grpo, 2 prompts of 256 tokens, 32 new tokens)",
        "completions",
        (4, 8, 16, 32),
        "Less than linear: a prompt is read once for its group, sampling and training alike.",
    ),
    "rows": (
        "Rows of the dataset (preparation, rows of 128 tokens, one process)",
        "rows",
        (2_000, 4_000, 8_000, 16_000),
        "Seconds are linear. These rows take less memory than the start of the process; a million are on the page "
        "[memory and speed](memory-and-speed.md#many-rows).",
    ),
    "ranks": (
        "Processes of ddp over gloo (sft, 8,192 tokens a step in all, one thread each)",
        "processes",
        (1, 2, 4),
        "Two processes halve a step on two cores, four cannot. Each process holds the whole model and its moments.",
    ),
    "methods": (
        "Installed methods (`posttrain list-methods`, the whole process, the fastest of seven)",
        "methods beside the project's own",
        (0, 256, 512, 1024),
        "Linear in the number of packages, each of which is a folder to look at and a card to read, beside what the "
        "start of Python takes.",
    ),
}


def rows_for(count: int, length: int) -> list[dict[str, str]]:
    """Rows of ``length`` tokens, one a letter; half of each is the prompt."""
    text = "abcdefgh" * (length // 16 + 1)
    return [{"prompt": text[: length // 2], "completion": text[: length // 2 - 1]} for _ in range(count)]


def make_model(folder: Path) -> None:
    """Write the model and a tokenizer of single letters."""
    import torch
    from posttrain_testkit.tiny import tiny_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    LlamaForCausalLM(LlamaConfig(**MODEL, **HEADS, **special)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def point(axis: str, size: int, model: str) -> dict[str, float]:
    """Measure one size in this process."""
    if axis == "rows":
        return _preparation(size, model)
    options: dict[str, Any] = {"steps": STEPS, "learning_rate": 1e-5, "max_length": 8192, "batch_size": 1}
    options |= {"cache": "off", "progress": "quiet", "device": "cpu", "report": False, "verify_saved": False}
    method = "sft"
    if axis == "tokens":
        options |= {"data": rows_for(size // 128, 128), "batch_size": size // 128}
    elif axis == "length":
        options |= {"data": rows_for(8192 // size, size), "batch_size": 8192 // size}
    elif axis == "group":
        method = "grpo"
        options |= {"data": [{"prompt": row["prompt"]} for row in rows_for(2, 512)], "reward": _count, "batch_size": 2}
        options |= {"group_size": size, "max_new_tokens": 32, "temperature": 1.0}
    from posttrain import api

    with tempfile.TemporaryDirectory() as folder:
        run = api.train(method, model=model, output=f"{folder}/run", **options)
    return _figures([line["seconds"] for line in run.metrics])


def _figures(seconds: list[float]) -> dict[str, float]:
    from posttrain.runs.facts import peak_memory_mb

    return {"seconds": statistics.median(seconds[-3:]), "memory_mb": peak_memory_mb()}


def _count(completions: list[str], **_: Any) -> list[float]:
    return [float(text.count("a")) for text in completions]


def _preparation(count: int, model: str) -> dict[str, float]:
    from posttrain.data import prepare, read_rows
    from posttrain.models.load import load_tokenizer
    from posttrain.settings import Settings

    settings = Settings(model=model, data_processes=1)
    tokenizer = load_tokenizer(model, settings.model, None)
    begun = time.perf_counter()
    rows = read_rows(rows_for(count, 128), ("prompt-completion",), settings.data)
    prepare(rows, tokenizer, settings.data, {2}, None)
    return _figures([time.perf_counter() - begun])


def _ranks(size: int, model: str) -> dict[str, float]:
    """The same step divided over processes, by the command line."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "rows.jsonl")
        data.write_text("".join(json.dumps(row) + "\n" for row in rows_for(64, 128)))
        command = [sys.executable, "-m", "posttrain", "train", "sft", "--model", model, "--data", str(data)]
        command += ["--steps", str(STEPS), "--batch-size", "64", "--device", "cpu", "--cache", "off", "--no-report"]
        command += ["--progress", "quiet", "--no-verify-saved", "--output", f"{folder}/run"]
        command += ["--strategy", "ddp", "--nproc", str(size)] if size > 1 else []
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        lines = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
    seconds = statistics.median(line["seconds"] for line in lines[-3:])
    return {"seconds": seconds, "memory_mb": lines[-1]["peak_memory_mb"]}


def _methods(size: int) -> dict[str, float]:
    """List all installed methods and ``size`` further ones, copies of kto's package under names of their own."""
    source = ROOT / "plugins" / "kto" / "posttrain_method_kto"
    with tempfile.TemporaryDirectory() as folder:
        for number in range(size):
            package, facts = (
                Path(folder, f"posttrain_method_copy{number}"),
                Path(folder, f"copy_{number}-1.0.dist-info"),
            )
            shutil.copytree(source, package, ignore=shutil.ignore_patterns("__pycache__"))
            card = package / "method.toml"
            card.write_text(card.read_text(encoding="utf-8").replace('"kto"', f'"copy-{number}"', 1), encoding="utf-8")
            facts.mkdir()
            (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: copy-{number}\nVersion: 1.0\n")
            (facts / "entry_points.txt").write_text(f"[posttrain.methods]\ncopy-{number} = {package.name}\n")
        paths = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
        command = [sys.executable, "-m", "posttrain", "list-methods", "--json"]
        taken = []
        for _ in range(7):
            begun = time.perf_counter()
            done = subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": paths})
            taken.append(time.perf_counter() - begun)
    rows = json.loads(done.stdout)
    if (found := sum(row["name"].startswith("copy-") and not row.get("problem") for row in rows)) != size:
        raise SystemExit(f"{found} of {size} methods were listed.")
    return {"seconds": min(taken)}


def exponent(points: list[dict[str, float]], name: str) -> float:
    """Slope of the least-squares line through the logarithms of the last three points."""
    pairs = [(math.log(one["size"]), math.log(one[name])) for one in points[-3:] if name in one]
    if not pairs:
        return math.nan
    x, y = (statistics.mean(values) for values in zip(*pairs, strict=True))
    return sum((a - x) * (b - y) for a, b in pairs) / sum((a - x) ** 2 for a, _ in pairs)


def measure(axes: list[str]) -> dict[str, Any]:
    """All points of ``axes``; the others keep their figures where they are of the same kind of machine."""
    from benchmarks.bench.processes import processor

    found: dict[str, Any] = {"processor": processor(), "cores": os.cpu_count(), "axes": {}}
    before = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else found
    if all(before[name] == found[name] for name in ("processor", "cores")):
        found["axes"] = before["axes"]
    elif set(axes) != set(AXES):
        raise SystemExit(
            f"{RESULT} was measured on {before['cores']} cores of {before['processor']}: leave --axis out."
        )
    with tempfile.TemporaryDirectory() as model:
        make_model(Path(model))
        for axis in axes:
            points = found["axes"][axis] = []
            for size in AXES[axis][2]:
                if axis == "ranks":
                    one = _ranks(size, model)
                elif axis == "methods":
                    one = _methods(size)
                else:
                    command = [sys.executable, "-m", "benchmarks.growth", "--point", axis, str(size), model]
                    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
                    one = json.loads(done.stdout.splitlines()[-1])
                points.append({"size": size} | {name: round(value, 4) for name, value in one.items()})
                print(axis, json.dumps(points[-1]), flush=True)
    return found


def render(found: dict[str, Any]) -> str:
    """The page."""
    text = (
        "<!-- Written by `python -m benchmarks.growth`. Do not edit. -->\n\n# How cost grows\n\n"
        f"Measured on {found['cores']} cores of {found['processor']} with a Llama of 6 million parameters, each point "
        "in a process of its own: median seconds of three steps, and the largest resident memory, about 400 MB of it "
        "the libraries. The exponent p is the slope through the last three points: cost grows like size**p there.\n"
    )
    for axis, (title, unit, _, why) in AXES.items():
        points = found["axes"][axis]
        seconds, memory = exponent(points, "seconds"), exponent(points, "memory_mb")
        text += f"\n## {title}\n\n| {unit} | seconds | memory, MB |\n|--:|--:|--:|\n"
        for one in points:
            used = f"{one['memory_mb']:,.0f}" if "memory_mb" in one else "-"
            text += f"| {one['size']:,} | {one['seconds']:.3f} | {used} |\n"
        text += f"| exponent | {seconds:.2f} | {'-' if math.isnan(memory) else f'{memory:.2f}'} |\n\n{why}\n"
    return text


def main() -> None:
    """Measure, and write result and page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true", help="write the page from what was measured before")
    parser.add_argument("--axis", nargs="+", choices=list(AXES), default=list(AXES), help="only these [all]")
    parser.add_argument("--point", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.point:
        axis, size, model = given.point
        print(json.dumps(point(axis, int(size), model)))
        return
    if not given.page:
        RESULT.write_text(json.dumps(measure(given.axis), indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(render(json.loads(RESULT.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()
