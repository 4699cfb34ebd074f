"""Speculative decoding against plain decoding: tokens a second, and how many guesses were right.

    python benchmarks/speculation.py
    python benchmarks/speculation.py --kind draft --draft-model FOLDER

Both sides complete the same prompts with the same weights in float32 and the same seeds, each answer of ``--tokens``
tokens, in turns in one process. ``repeats`` are prompts whose answer repeats them: a passage is to be written again
with a name replaced. ``questions`` are those of GSM8K, which an answer repeats less. Without ``--draft-model`` the kind
``draft`` takes the first ``--draft-layers`` layers of the model, which nobody trained to stand alone.

Greedy and looked-up answers must be equal on both sides, up to near ties that rounding decides; the number is printed.
The ratio of CPU time does not depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MODEL = Path.home() / ".cache" / "posttrain" / "smollm2-135m"
DATA = HERE.parent.parent / "shared" / "data" / "gsm8k-train.jsonl"
TASKS = {
    "repeats": "Write this text again, word for word, but replace the first name in it by Kim.\n\n{}",
    "questions": "{}",
}


def main() -> int:
    """Measure all cases, print a line each, write the results. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(MODEL), help="folder of a chat model")
    parser.add_argument("--data", type=Path, default=DATA, help="JSONL with a column 'question'")
    parser.add_argument("--kind", choices=("ngram", "draft"), default="ngram")
    parser.add_argument("--draft-model", help="folder of a smaller model with the same tokeniser")
    parser.add_argument("--draft-layers", type=int, default=4)
    parser.add_argument("--guesses", type=int, help="most tokens that are guessed for a pass [8, 4 with a draft model]")
    parser.add_argument("--task", action="append", choices=tuple(TASKS), help="repeatable [both]")
    parser.add_argument("--temperature", type=float, action="append", help="repeatable [0 and 1]")
    parser.add_argument("--batch-size", type=int, action="append", help="repeatable [1 and 4]")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3, help="runs of each side; the median counts")
    parser.add_argument("--output", type=Path, help="[results/speculation-KIND.json]")
    options = parser.parse_args()
    for path in (Path(options.model), options.data):
        if not path.exists():
            print(f"{path} does not exist. Name a model with --model and questions with --data.", file=sys.stderr)
            return 2
    material, rows = Material(options), []
    for task in options.task or TASKS:
        for temperature in options.temperature or (0.0, 1.0):
            for size in options.batch_size or (1, 4):
                rows.append(_measure(material, task, temperature, size))
                _show(rows[-1])
    output = options.output or HERE / "results" / f"speculation-{options.kind}.json"
    output.write_text(json.dumps(_facts(options) | {"rows": rows}, indent=1) + "\n", encoding="utf-8")
    print(f"written: {output}")
    return 0


def _facts(options: argparse.Namespace) -> dict[str, Any]:
    import torch
    import transformers

    return {
        "model": Path(options.model).name,
        "kind": options.kind,
        "draft": options.draft_model or f"the first {options.draft_layers} layers" if options.kind == "draft" else None,
        "dtype": "float32",
        "threads": torch.get_num_threads(),
        "processor": _processor(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "prompts": options.prompts,
        "tokens": options.tokens,
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


class Material:
    """The model, a draft of it, and the prompts."""

    def __init__(self, options: argparse.Namespace):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.options = options
        self.tokenizer = AutoTokenizer.from_pretrained(options.model)
        self.model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
        self.draft: Any = None
        if options.kind == "draft" and options.draft_model:
            self.draft = AutoModelForCausalLM.from_pretrained(options.draft_model, dtype=torch.float32).eval()
        elif options.kind == "draft":
            self.draft = copy.deepcopy(self.model)
            self.draft.model.layers = self.draft.model.layers[: options.draft_layers]
            self.draft.config.num_hidden_layers = options.draft_layers
        with options.data.open(encoding="utf-8") as lines:
            self.questions = [
                json.loads(line)["question"] for line, _ in zip(lines, range(options.prompts), strict=False)
            ]

    def prompts(self, task: str) -> list[Any]:
        """Return the tokens ``(n,)`` of each prompt."""
        import torch

        messages = [[{"role": "user", "content": TASKS[task].format(question)}] for question in self.questions]
        ids = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        return [torch.tensor(own) for own in ids]

    def speculation(self) -> Any:
        """Build what the guessing side guesses with."""
        from posttrain.generation.local.draft import USUAL
        from posttrain.generation.local.prefill import Network
        from posttrain.generation.local.speculation import Speculation

        draft = None if self.draft is None else Network(self.draft)
        return Speculation(self.options.kind, self.options.guesses or USUAL[self.options.kind], draft)


def _measure(material: Material, task: str, temperature: float, size: int) -> dict[str, Any]:
    """Return tokens a second of both sides in turn, and what became of the guesses."""
    from posttrain.contract.generation import Sampling
    from posttrain.generation.local.hf import HfGenerator

    prompts, how = material.prompts(task), material.speculation()
    seeds = [[number] for number in range(len(prompts))]
    sides = {
        "plain": HfGenerator(material.model, material.tokenizer, set(), size),
        "guessing": HfGenerator(material.model, material.tokenizer, set(), size, speculation=how),
    }
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    work: dict[str, list[float]] = {name: [] for name in sides}
    answers: dict[str, list[list[int]]] = {}
    for generator in sides.values():
        generator.generate(prompts[:1], Sampling(4, temperature), seeds[:1])
    how.tried = how.right = 0
    for _ in range(material.options.repeat):
        for name, generator in sides.items():
            begun, used = time.perf_counter(), time.process_time()
            made = generator.generate(prompts, Sampling(material.options.tokens, temperature), seeds)
            answers[name] = [one.ids.tolist() for (one,) in made]
            speeds[name].append(sum(map(len, answers[name])) / (time.perf_counter() - begun))
            work[name].append(time.process_time() - used)
    ratios = [ours / plain for ours, plain in zip(speeds["guessing"], speeds["plain"], strict=True)]
    count = sum(map(len, answers["guessing"])) * material.options.repeat
    return {
        "task": task,
        "temperature": temperature,
        "batch_size": size,
        "tokens_per_second": {name: [round(speed, 2) for speed in own] for name, own in speeds.items()},
        "ratios": [round(ratio, 3) for ratio in ratios],
        "ratio": round(statistics.median(ratios), 3),
        "cpu_seconds": {name: [round(seconds, 2) for seconds in own] for name, own in work.items()},
        "cpu_ratio": round(statistics.median(work["plain"]) / statistics.median(work["guessing"]), 3),
        "accepted_share": round(how.right / max(1, how.tried), 3),
        "share_of_tokens": round(how.right / count, 3),
        "equal_answers": sum(map(list.__eq__, answers["plain"], answers["guessing"])),
    }


def _show(row: dict[str, Any]) -> None:
    """Print one case's line."""
    plain, ours = (statistics.median(row["tokens_per_second"][name]) for name in ("plain", "guessing"))
    print(
        f"{row['task']}, temperature {row['temperature']:g}, {row['batch_size']} at a time: {ours:.1f} against "
        f"{plain:.1f} tokens/s, ratio {min(row['ratios']):.2f} {row['ratio']:.2f} {max(row['ratios']):.2f}, of CPU "
        f"time {row['cpu_ratio']:.2f}; of the guesses read {row['accepted_share']:.0%} right, "
        f"{row['share_of_tokens']:.0%} of all tokens; {row['equal_answers']} answers equal",
        flush=True,
    )


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
