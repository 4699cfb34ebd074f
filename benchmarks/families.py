"""The stable methods on models with images and mixtures of experts: any cut of a step, resume, two processes.

Run with ``python benchmarks/families.py`` (a quarter of an hour on two cores); ``--family llava`` runs one family again
and keeps the others' figures. Each method trains a tiny model of each family: two steps in float64 whole and in
micro-batches of one example, four steps that are stopped half-way and resumed, two steps by two processes under ddp and
fsdp. Writes ``results/families.json``, from which ``posttrain sync`` makes a page.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
METHODS = ("sft", "dpo", "reward", "grpo", "rloo")
IMAGES = ("qwen2-vl", "qwen2.5-vl", "qwen3-vl", "idefics3", "smolvlm", "llava", "gemma3", "paligemma", "internvl")
EXPERTS = ("mixtral", "qwen3_moe")
#: Metrics that are compared. ``router_loss`` stands on the lines of mixtures of experts.
NAMES = ("loss", "grad_norm", "reward", "margin", "router_loss")
#: Fields of a configuration that ask for the router loss.
ROUTED = {"output_router_logits": True, "router_aux_loss_coef": 0.02}
COMMON: dict[str, Any] = {
    "batch_size": 6,
    "steps": 2,
    "learning_rate": 1e-2,
    "schedule": "constant",
    "cache": "off",
    "progress": "quiet",
    "report": False,
    "device": "cpu",
    "verify_saved": False,
}


def count_odd(completions: list[str], **columns: Any) -> list[float]:
    """The reward: the share of characters with an odd number. Answers of any tokenizer differ in it."""
    return [sum(ord(one) % 2 for one in text) / max(1, len(text)) for text in completions]


def save(family: str, folder: Path) -> None:
    """Write the tiny model of a family, with its processor or tokenizer."""
    from posttrain_testkit.tiny import tiny_tokenizer
    from posttrain_testkit.tiny_experts import tiny_experts
    from posttrain_testkit.tiny_vision import save_tiny_vision

    if family in IMAGES:
        save_tiny_vision(family, folder)
        return
    tiny_experts(family, **ROUTED).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def rows_of(family: str, method: str) -> list[dict[str, Any]]:
    """Six rows of the method's schema; of a family with images five have some, behind equal text."""
    from posttrain_testkit.tiny_vision import answered, shown

    texts = [{"role": "user", "content": "abcab"[: 2 + n % 3]} for n in range(6)]
    asked = [shown(seed, "what") for seed in (1, 2, 1, 3, 2)] + [texts[5]] if family in IMAGES else texts
    rows = []
    for n, message in enumerate(asked):
        chosen, rejected = [answered("a" * (1 + n % 3))], [answered("b" * (1 + n % 2))]
        more = {
            "sft": {"completion": chosen},
            "dpo": {"chosen": chosen, "rejected": rejected},
            "reward": {"chosen": chosen, "rejected": rejected},
        }
        rows.append({"prompt": [message], **more.get(method, {})})
    return rows


def train(family: str, method: str, model: Path, output: Path, **options: Any) -> Any:
    """One run of a method."""
    import posttrain
    import torch
    from posttrain_testkit.tiny import tiny_tokenizer
    from posttrain_testkit.tiny_experts import tiny_experts

    online = {"reward": [count_odd], "group_size": 4, "max_new_tokens": 5} if method in ("grpo", "rloo") else {}
    seen = {"train_vision": "all"} if family in IMAGES else {}
    given: dict[str, Any] = {"model": str(model)}
    if family in EXPERTS and options.get("dtype") == "float64":  # loaded from a folder, experts know no float64
        head = "reward-head" if method == "reward" else "vocabulary"
        given = {"model": tiny_experts(family, head, torch.float64, **ROUTED), "tokenizer": tiny_tokenizer()}
    given |= {"data": rows_of(family, method), "output": str(output)}
    return posttrain.train(method, **(given | COMMON | online | seen | options))


def series(run: Any) -> list[list[float]]:
    """The compared numbers of each step."""
    return [[line[name] for name in NAMES if name in line] for line in run.progress.history]


def difference(one: list[list[float]], other: list[list[float]]) -> float:
    """The largest difference of two series, relative where a number is larger than 1."""
    if [len(step) for step in one] != [len(step) for step in other]:
        return math.inf
    pairs = [pair for steps in zip(one, other, strict=True) for pair in zip(*steps, strict=True)]
    return max(abs(a - b) / max(1.0, abs(a)) for a, b in pairs)


def resumed(family: str, method: str, model: Path, folder: Path) -> tuple[bool, list[list[float]]]:
    """Whether a run that goes on after two of four steps ends with the same bits; and the first two steps' numbers."""
    import torch
    from posttrain import api

    whole = train(family, method, model, folder / "whole", steps=4, save_every=2)
    shutil.copytree(whole.path, folder / "again")
    shutil.rmtree(folder / "again" / "checkpoints" / "step-4")
    objects: dict[str, Any] = {"data": rows_of(family, method)}
    again = api.resume(folder / "again", **objects, **({"reward": [count_odd]} if method in ("grpo", "rloo") else {}))
    weights = again.model.state_dict()
    same = all(torch.equal(tensor, weights[name]) for name, tensor in whole.model.state_dict().items())
    return same and series(whole) == series(again), series(whole)[:2]


def alone(family: str, model: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """What one process measures of each method."""
    found = {}
    for method in METHODS:
        own = folder / method
        same, first = resumed(family, method, model, own)
        whole, cut = (
            series(train(family, method, model, own / name, dtype="float64", **more))
            for name, more in (("float64", {}), ("cut", {"micro_batch_size": 1}))
        )
        if not all(norm > 0 for _, norm, *_ in whole):
            raise SystemExit(f"{family} {method}: the gradient is 0, so that nothing is compared.")
        found[method] = {"cut": difference(whole, cut), "resumed": same, "first": first}
    return found


def together(family: str, model: Path, folder: Path) -> None:
    """One of two processes: each method under ddp and fsdp; the first writes the numbers down."""
    found = {}
    for method in METHODS:
        for strategy in ("ddp", "fsdp"):
            run = train(family, method, model, folder / strategy / method, strategy=strategy)
            found[f"{strategy} {method}"] = series(run)
    if run.compute.strategy.rank == 0:
        (folder / "together.json").write_text(json.dumps(found))


def measure(family: str) -> dict[str, dict[str, Any]]:
    """All figures of a family, by method."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save(family, folder / "model")
        found = alone(family, folder / "model", folder)
        words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(Path(__file__))]
        command = [sys.executable, *words, "--worker", str(folder), "--family", family]
        done = subprocess.run(
            command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"Two processes of {family} ended with {done.returncode}:\n{done.stderr[-3000:]}")
        both = json.loads((folder / "together.json").read_text())
    for method, figures in found.items():
        first = figures.pop("first")
        figures |= {strategy: difference(first, both[f"{strategy} {method}"]) for strategy in ("ddp", "fsdp")}
    return found


def main() -> None:
    """Take the figures and write them down, family by family."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", action="append", choices=(*IMAGES, *EXPERTS), help="measure this one [all]")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        together(options.family[0], options.worker / "model", options.worker)
        return
    file = HERE / "results" / "families.json"
    found = json.loads(file.read_text()) if options.family and file.is_file() else {}
    for family in options.family or (*EXPERTS, *IMAGES):
        found[family] = measure(family)
        print(family, json.dumps(found[family]), flush=True)
        file.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
