"""One case on posttrain's side: ``python ours.py FOLDER CASE RESULT.json``.

``cases.arguments`` are the options of its command line.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import cases
import material


class FromFile:
    """A generator that answers with the completions of a file, from number ``first`` on."""

    def __init__(self, rollouts: dict[str, list[list[int]]], tokenizer: Any, first: int):
        from posttrain.contract.generation import Abilities

        self.rollouts, self.tokenizer, self.first = rollouts, tokenizer, first
        self.abilities = Abilities(own_weights=False, exact=True, images=True)

    def accept(self, weights: Any) -> None:
        """Files do not change."""

    def drain(self) -> None:
        """Nothing is in the making."""

    def health(self) -> Any:
        """Always well."""
        from posttrain.contract.generation import Health

        return Health(-1)

    def close(self) -> None:
        """Nothing to end."""

    def generate(
        self, prompts: list[Any], sampling: Any, seeds: list[list[int]], images: Any = None
    ) -> list[list[Any]]:
        """The stored completions of each prompt."""
        import torch
        from posttrain.contract.generation import Completion

        groups = []
        for prompt, wanted in zip(prompts, seeds, strict=True):
            stored = self.rollouts[material.key(prompt.tolist())][self.first : self.first + len(wanted)]
            texts = [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in stored]
            finished = [ids[-1] == self.tokenizer.eos_token_id for ids in stored]
            groups.append(
                [
                    Completion(torch.tensor(ids), torch.zeros(len(ids)), end, text)  # sampled log-probs play no part
                    for ids, end, text in zip(stored, finished, texts, strict=True)
                ]
            )
        return groups


def main(folder: Path, case: cases.Case, result: Path, save: str | None) -> None:
    """Train, write the series, and the model where ``save`` says."""
    from posttrain.api import train

    if case.online:
        _answer_from_file(json.loads((folder / case.rollouts).read_text(encoding="utf-8")))
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as output:
        run = train(
            case.method,
            model=str(folder / case.model),
            data=str(folder / case.data),
            output=output + "/run",
            steps=case.steps,
            learning_rate=case.learning_rate,
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
            save_minutes=0,
            verify_saved=save is None,  # a model that is kept is read again by whoever measures it
            **_options(case, folder),
        )
        if save:
            shutil.move(run.outputs.directory.model, save)
    lines = [{name: line[name] for name in ("loss", "grad_norm", "seconds")} for line in run.metrics]
    result.write_text(json.dumps({"steps": lines, "ids": _ids(run, case), "whole": time.perf_counter() - begun}))


def _options(case: cases.Case, folder: Path) -> dict[str, Any]:
    options = dict(case.options)
    if case.method == "aot":
        options["reference_model"] = str(folder / "other-model")
    if case.method in ("gkd", "minillm"):
        options["teacher_model"] = str(folder / "other-model")
    if case.method == "gold":
        options["teacher_model"] = str(folder / "strange-model")
    if case.method == "dr-grpo":
        options["constant_length"] = material.LONGEST
    if case.images:
        options["train_vision"] = "all"
    if case.aggregation:
        options["aggregation"] = case.aggregation
    if case.online:
        longest = 64 if case.data == "sft.jsonl" else material.LONGEST  # answers of the data are cut off there too
        options |= {"max_new_tokens": longest, "updates_per_rollout": case.updates}
        options |= {"group_size": case.group_size, "temperature": 1.0}
        if case.rewarded:
            options["reward"] = [_vowels]
    examples = case.prompts * case.group_size if case.online else cases.OFFLINE_BATCH
    return options | {"batch_size": case.prompts, "micro_batch_size": examples // case.accumulation}


def _vowels(prompts: list[Any], completions: list[str], **columns: Any) -> list[float]:
    return [material.reward(text) for text in completions]


def _answer_from_file(rollouts: dict[str, list[list[int]]]) -> None:
    """Put ``FromFile`` where a run would build its generators: the policy's, and those of whoever answers after it."""
    from posttrain.assembly import build
    from posttrain.rollouts import requests as generate

    build.make_generator = lambda compute, directory: FromFile(rollouts, compute.tokenizer, 0)
    generate.HfGenerator = lambda model, tokenizer, *given: FromFile(rollouts, tokenizer, 1)
    generate.MixtureGenerator = lambda policy, reference, share, tokenizer, *given: FromFile(rollouts, tokenizer, 1)


def _ids(run: Any, case: cases.Case) -> list[Any]:
    """Token ids of the rows in order, and where the trained ones begin; see ``theirs_*.ids``."""
    if case.online:
        prompts = run.source.collector.prompts
        return [prompts[i].sequences["prompt"][0].ids.tolist() for i in range(len(prompts))]
    found = []
    for example in (run.source.data[i] for i in range(len(run.source.data))):
        for role in example.sequences:
            (sequence,) = example.sequences[role]
            if case.method == "prm-step":
                answer = sequence.trained.nonzero()[:, 0]
                found.append([sequence.ids.tolist(), answer[sequence.per_token["step_end"].bool()].tolist()])
                continue
            first = 0 if case.method == "reward" else int(sequence.trained.nonzero()[0])
            found.append([sequence.ids.tolist(), first])
    return found


if __name__ == "__main__":
    told = cases.arguments()
    main(told.folder, told.case, told.result, told.save)
