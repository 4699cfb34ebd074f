"""One case on posttrain's side: ``python ours.py FOLDER CASE RESULT.json``."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cases
import material


class FromFile:
    """A generator that answers with the completions of ``rollouts.json``."""

    def __init__(self, rollouts: dict[str, list[list[int]]], tokenizer: Any):
        self.rollouts, self.tokenizer = rollouts, tokenizer

    def generate(self, prompts: list[Any], sampling: Any, seeds: list[list[int]]) -> list[list[Any]]:
        """The stored completions of each prompt."""
        import torch
        from posttrain.generation.protocol import Completion

        groups = []
        for prompt in prompts:
            stored = self.rollouts[material.key(prompt.tolist())]
            texts = [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in stored]
            finished = [ids[-1] == self.tokenizer.eos_token_id for ids in stored]
            groups.append(
                [
                    Completion(torch.tensor(ids), torch.zeros(len(ids)), end, text)  # sampled log-probs play no part
                    for ids, end, text in zip(stored, finished, texts, strict=True)
                ]
            )
        return groups


def main(folder: Path, case: cases.Case, result: Path) -> None:
    """Train and write the series."""
    from posttrain.api import train

    if case.online:
        _answer_from_file(json.loads((folder / "rollouts.json").read_text(encoding="utf-8")))
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as output:
        run = train(
            case.method,
            model=str(folder / ("reward-model" if case.method == "reward" else "model")),
            data=str(folder / _file(case)),
            output=output + "/run",
            steps=cases.STEPS,
            learning_rate=cases.LEARNING_RATE,
            schedule="constant",
            warmup_steps=0,
            weight_decay=0.0,
            max_grad_norm=cases.MAX_GRAD_NORM,
            adam_epsilon=cases.ADAM_EPSILON,
            dtype="float32",
            device="cpu",
            shuffle=False,
            cache="off",
            progress="quiet",
            **_options(case),
        )
    lines = [{name: line[name] for name in ("loss", "grad_norm", "seconds")} for line in run.metrics]
    result.write_text(json.dumps({"steps": lines, "ids": _ids(run, case), "whole": time.perf_counter() - begun}))


def _file(case: cases.Case) -> str:
    return "prompts.jsonl" if case.online else "sft.jsonl" if case.method == "sft" else "preference.jsonl"


def _options(case: cases.Case) -> dict[str, Any]:
    told = {"beta": cases.BETA, "gamma": cases.GAMMA, "sft_weight": cases.SFT_WEIGHT}
    options: dict[str, Any] = {name: value[case.method] for name, value in told.items() if case.method in value}
    if not case.online:
        size = cases.OFFLINE_BATCH
        return options | {"batch_size": size, "micro_batch_size": size // case.accumulation}
    if case.aggregation:
        options["aggregation"] = case.aggregation
    size = cases.ONLINE_PROMPTS
    options |= {"batch_size": size, "micro_batch_size": size * material.GROUP // case.accumulation}
    options |= {"group_size": material.GROUP, "max_new_tokens": material.LONGEST, "updates_per_rollout": case.updates}
    return options | {"reward": [_vowels]}


def _vowels(prompts: list[Any], completions: list[str], **columns: Any) -> list[float]:
    return [material.reward(text) for text in completions]


def _answer_from_file(rollouts: dict[str, list[list[int]]]) -> None:
    """Put ``FromFile`` where a run would build its generator."""
    from posttrain.engine import build

    build.HfGenerator = lambda model, tokenizer, stop_ids, batch_size: FromFile(rollouts, tokenizer)


def _ids(run: Any, case: cases.Case) -> list[Any]:
    """Token ids of the rows in order, and where the trained ones begin; see ``theirs._ids``."""
    if case.online:
        return [
            e.sequences["prompt"][0].ids.tolist()
            for e in (run.source.prompts[i] for i in range(len(run.source.prompts)))
        ]
    found = []
    for example in (run.source.data[i] for i in range(len(run.source.data))):
        for role in example.sequences:
            (sequence,) = example.sequences[role]
            first = 0 if case.method == "reward" else int(sequence.trained.nonzero()[0])
            found.append([sequence.ids.tolist(), first])
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), cases.of(sys.argv[2]), Path(sys.argv[3]))
