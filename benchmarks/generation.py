"""Tokens a second of sampling: ``model.generate`` of transformers against posttrain's generator.

    python benchmarks/generation.py

Both complete the same prompts, GSM8K questions in the model's chat format, with the same weights in float32. How long
each answer gets is drawn from a geometric distribution beforehand, and both sides are held to it: ``model.generate`` by
a stopping criterion for every row (it then pads that row until the longest is done, its way with any row that is
finished), posttrain by the limit of every sample. No other stop token counts. So both make exactly the same number of
tokens, which is checked, and for greedy decoding the tokens themselves are compared. ``model.generate`` completes
``--batch-size`` prompts at a time; posttrain may have as many in the making. Only posttrain keeps log-probs.

The sides take turns in one process, after one short call each. The ratio of CPU time does not depend on what else the
machine does; more than one thread adds up in it. Exit status 1 if a median ratio is below ``--least``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MODEL = Path.home() / ".cache" / "posttrain" / "smollm2-135m"
DATA = HERE.parent.parent / "shared" / "data" / "gsm8k-train.jsonl"


def main() -> int:
    """Measure all modes, print the table, write the results. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(MODEL), help="folder of a chat model")
    parser.add_argument("--data", type=Path, default=DATA, help="JSONL with a column 'question'")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--mean", type=int, default=24, help="mean length of an answer in tokens")
    parser.add_argument("--batch-size", type=int, action="append", help="prompts at a time; repeatable [all]")
    parser.add_argument("--mode", action="append", choices=("sampling", "greedy"), help="repeatable [both]")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each side; the median counts")
    parser.add_argument("--seed", type=int, default=0, help="seed of the lengths")
    parser.add_argument("--least", type=float, default=1.4, help="smallest median ratio that passes")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "generation.json")
    options = parser.parse_args()
    for path in (Path(options.model), options.data):
        if not path.exists():
            print(f"{path} does not exist. Name a model with --model and questions with --data.", file=sys.stderr)
            return 2
    return _report(options)


def _report(options: argparse.Namespace) -> int:
    import torch
    import transformers

    material = Material(options)
    rows = []
    for size in options.batch_size or [options.prompts]:
        for mode in options.mode or ("sampling", "greedy"):
            rows.append({"batch_size": size, "mode": mode} | _measure(material, size, mode == "greedy", options.repeat))
            _show(rows[-1])
    lengths = [prompt.numel() for prompt in material.prompts]
    facts = {
        "model": Path(options.model).name,
        "dtype": "float32",
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "prompts": len(lengths),
        "prompt_tokens": [min(lengths), round(statistics.mean(lengths)), max(lengths)],
        "answer_lengths": material.limits,
        "least": options.least,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(facts | {"rows": rows}, indent=1) + "\n", encoding="utf-8")
    print(f"written: {options.output}")
    failed = [row for row in rows if row["ratio"] < options.least]
    if failed:
        print(f"FAILED: expected a ratio of {options.least:g}.")
    return int(bool(failed))


class Material:
    """The model, the prompts and how long each answer gets."""

    def __init__(self, options: argparse.Namespace):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(options.model)
        self.model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
        with options.data.open(encoding="utf-8") as lines:
            questions = [json.loads(line)["question"] for line, _ in zip(lines, range(options.prompts), strict=False)]
        messages = [[{"role": "user", "content": question}] for question in questions]
        ids = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        self.prompts = [torch.tensor(own) for own in ids]  # (n,) each
        source = random.Random(options.seed)
        chance = 1 / options.mean
        self.limits = [1 + int(math.log(1 - source.random()) / math.log(1 - chance)) for _ in self.prompts]


def _measure(material: Material, size: int, greedy: bool, repeat: int) -> dict[str, Any]:
    """Tokens a second of both sides in turn."""
    sides: dict[str, Callable[..., list[list[int]]]] = {"generate": _generate, "posttrain": _posttrain}
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    work: dict[str, list[float]] = {name: [] for name in sides}
    answers: dict[str, list[list[int]]] = {}
    for side in sides.values():
        side(material, size, greedy, 2)
    for _ in range(repeat):
        for name, side in sides.items():
            begun, used = time.perf_counter(), time.process_time()
            answers[name] = side(material, size, greedy, max(material.limits))
            speeds[name].append(sum(material.limits) / (time.perf_counter() - begun))
            work[name].append(time.process_time() - used)
            made = [len(answer) for answer in answers[name]]
            if made != material.limits:
                raise SystemExit(f"{name} made answers of {made} tokens. Expected {material.limits}.")
    found: dict[str, Any] = {name: [round(speed, 2) for speed in own] for name, own in speeds.items()}
    ratios = [ours / theirs for ours, theirs in zip(speeds["posttrain"], speeds["generate"], strict=True)]
    found["cpu_seconds"] = {name: [round(seconds, 2) for seconds in own] for name, own in work.items()}
    found["cpu_ratio"] = round(statistics.median(work["generate"]) / statistics.median(work["posttrain"]), 3)
    found |= {"ratios": [round(ratio, 3) for ratio in ratios], "ratio": round(statistics.median(ratios), 3)}
    if greedy:  # the sides round differently, and a near tie may then go the other way
        found["equal_answers"] = sum(map(list.__eq__, answers["generate"], answers["posttrain"]))
    return found


def _generate(material: Material, size: int, greedy: bool, longest: int) -> list[list[int]]:
    """``model.generate``, ``size`` prompts at a time, those of like length together."""
    import torch
    from transformers import StoppingCriteriaList

    torch.manual_seed(0)
    answers: list[list[int]] = [[] for _ in material.prompts]
    order = sorted(range(len(answers)), key=lambda i: material.prompts[i].numel())
    for begin in range(0, len(order), size):
        rows = order[begin : begin + size]
        width = max(material.prompts[i].numel() for i in rows)
        limits = torch.tensor([min(material.limits[i], longest) for i in rows])
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(rows):
            ids[row, width - material.prompts[i].numel() :] = material.prompts[i]
            mask[row, width - material.prompts[i].numel() :] = 1
        output = material.model.generate(
            ids,
            attention_mask=mask,
            do_sample=not greedy,
            **({} if greedy else {"temperature": 1.0, "top_k": 0, "top_p": 1.0}),
            max_new_tokens=int(limits.max()),
            stopping_criteria=StoppingCriteriaList([_criterion(width, limits)]),
            eos_token_id=None,
            pad_token_id=material.tokenizer.pad_token_id,
        )
        for row, i in enumerate(rows):
            answers[i] = output[row, width : width + int(limits[row])].tolist()
    return answers


def _criterion(width: int, limits: Any) -> Any:
    from transformers import StoppingCriteria

    class Limits(StoppingCriteria):
        """Each row is done at its own length."""

        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            return input_ids.size(1) - width >= limits  # (n,) bool

    return Limits()


def _posttrain(material: Material, size: int, greedy: bool, longest: int) -> list[list[int]]:
    """posttrain's generator with ``size`` completions in the making."""
    from posttrain.contract.generation import Sampling
    from posttrain.generation.local.hf import HfGenerator

    class Limited(HfGenerator):
        """Each sample is done at its own length."""

        def limit(self, index: int, prompt: Any, sampling: Sampling) -> int:
            return min(material.limits[index], sampling.max_new_tokens)

    generator = Limited(material.model, material.tokenizer, set(), size)
    seeds = [[i] for i in range(len(material.prompts))]
    answers = generator.generate(material.prompts, Sampling(longest, greedy=greedy), seeds)
    return [answer.ids.tolist() for (answer,) in answers]


def _show(row: dict[str, Any]) -> None:
    """One mode's line; lowest, median and highest of each."""
    triple = lambda own: f"{min(own):>7.1f} {statistics.median(own):>7.1f} {max(own):>7.1f}"  # noqa: E731  (three uses)
    equal = f"  equal answers: {row['equal_answers']}" if "equal_answers" in row else ""
    print(f"{row['mode']}, {row['batch_size']} at a time (lowest, median, highest)")
    print(f"  generate  {triple(row['generate'])} tokens/s")
    print(f"  posttrain {triple(row['posttrain'])} tokens/s")
    low, high = min(row["ratios"]), max(row["ratios"])
    print(
        f"  ratio     {low:>7.2f} {row['ratio']:>7.2f} {high:>7.2f}, of CPU time {row['cpu_ratio']:.2f}{equal}",
        flush=True,
    )


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
