"""One case on TRL's side, run by an interpreter that has TRL: ``python theirs.py FOLDER CASE RESULT.json``."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cases
import material
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    RewardConfig,
    RewardTrainer,
    RLOOConfig,
    RLOOTrainer,
    SFTConfig,
    SFTTrainer,
)
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer


class Clock(TrainerCallback):
    """Seconds of each optimiser step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.begun = 0.0

    def on_step_begin(self, *given: Any, **named: Any) -> None:
        self.begun = time.perf_counter()

    def on_step_end(self, *given: Any, **named: Any) -> None:
        self.seconds.append(time.perf_counter() - self.begun)


def main(folder: Path, case: cases.Case, result: Path) -> None:
    """Train and write the series."""
    begun = time.perf_counter()
    clock = Clock()
    with tempfile.TemporaryDirectory() as output:
        trainer = _trainer(folder, case, output)
        trainer.add_callback(clock)
        trainer.train()
    logs = [line for line in trainer.state.log_history if "loss" in line]
    lines = [
        {"loss": line["loss"], "grad_norm": float(line["grad_norm"]), "seconds": seconds}
        for line, seconds in zip(logs, clock.seconds, strict=True)
    ]
    result.write_text(json.dumps({"steps": lines, "ids": _ids(trainer, case), "whole": time.perf_counter() - begun}))


def _trainer(folder: Path, case: cases.Case, output: str) -> Any:
    model = str(folder / ("reward-model" if case.method == "reward" else "model"))
    tokenizer = AutoTokenizer.from_pretrained(model)
    builders = {"sft": _sft, "reward": _reward, "grpo": _online, "rloo": _online, "orpo": _orpo}
    build = builders.get(case.method, _cpo if case.method in ("cpo", "simpo") else _dpo)
    return build(folder, case, _shared(case, output), model, tokenizer)


def _shared(case: cases.Case, output: str) -> dict[str, Any]:
    """Arguments of every trainer; what is not named here has the same default on both sides."""
    size = cases.ONLINE_PROMPTS * material.GROUP if case.online else cases.OFFLINE_BATCH
    return {
        "output_dir": output,
        "max_steps": cases.STEPS,
        "per_device_train_batch_size": size // case.accumulation,
        "gradient_accumulation_steps": case.accumulation,
        "learning_rate": cases.LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_grad_norm": cases.MAX_GRAD_NORM,
        "adam_epsilon": cases.ADAM_EPSILON,
        "optim": "adamw_torch",
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "model_init_kwargs": {"dtype": "float32"},
        "seed": 0,
    }


def _rows(folder: Path, name: str) -> Dataset:
    lines = (folder / name).read_text(encoding="utf-8").splitlines()
    return Dataset.from_list([json.loads(line) for line in lines])


def _sft(folder: Path, case: cases.Case, shared: dict[str, Any], model: str, tokenizer: Any) -> Any:
    config = SFTConfig(**shared, completion_only_loss=True, train_sampling_strategy="sequential", shuffle_dataset=False)
    return SFTTrainer(model, args=config, train_dataset=_rows(folder, "sft.jsonl"), processing_class=tokenizer)


def _dpo(folder: Path, case: cases.Case, shared: dict[str, Any], model: str, tokenizer: Any) -> Any:
    loss = "sigmoid" if case.method == "dpo" else case.method.replace("-", "_")
    shared |= {"beta": cases.BETA[case.method], "loss_type": [loss], "train_sampling_strategy": "sequential"}
    rows = _rows(folder, "preference.jsonl")
    return DPOTrainer(model, args=DPOConfig(**shared), train_dataset=rows, processing_class=tokenizer)


def _cpo(folder: Path, case: cases.Case, shared: dict[str, Any], model: str, tokenizer: Any) -> Any:
    shared |= {"beta": cases.BETA[case.method], "train_sampling_strategy": "sequential"}
    if case.method == "simpo":
        shared |= {"loss_type": "simpo", "simpo_gamma": cases.GAMMA["simpo"], "cpo_alpha": 0.0}  # see README.md
    else:
        shared |= {"loss_type": "sigmoid", "cpo_alpha": cases.SFT_WEIGHT["cpo"]}
    rows = _rows(folder, "preference.jsonl")
    return CPOTrainer(model, args=CPOConfig(**shared), train_dataset=rows, processing_class=tokenizer)


def _orpo(folder: Path, case: cases.Case, shared: dict[str, Any], model: str, tokenizer: Any) -> Any:
    shared |= {"beta": cases.BETA["orpo"], "train_sampling_strategy": "sequential"}
    rows = _rows(folder, "preference.jsonl")
    return CompletionLikelihood(model, args=ORPOConfig(**shared), train_dataset=rows, processing_class=tokenizer)


class CompletionLikelihood(ORPOTrainer):
    """ORPO's own loss on the forward pass of TRL's CPO, whose likelihood leaves the prompt out. See README.md."""

    concatenated_forward = CPOTrainer.concatenated_forward
    loss_type, cpo_alpha = "simpo", 1.0  # what makes that pass return means over tokens, and a likelihood

    @property
    def pad_token_id(self) -> int:
        return self.padding_value


def _reward(folder: Path, case: cases.Case, shared: dict[str, Any], model: str, tokenizer: Any) -> Any:
    config = RewardConfig(**shared, train_sampling_strategy="sequential")
    return RewardTrainer(
        model, args=config, train_dataset=_rows(folder, "preference.jsonl"), processing_class=tokenizer
    )


def _online(folder: Path, case: cases.Case, shared: dict[str, Any], model: str, tokenizer: Any) -> Any:
    shared |= {
        "beta": cases.BETA[case.method],
        "num_generations": material.GROUP,
        "max_completion_length": material.LONGEST,
        "num_iterations": case.updates,
        "shuffle_dataset": False,
    }
    given = {"reward_funcs": _vowels, "train_dataset": _rows(folder, "prompts.jsonl"), "processing_class": tokenizer}
    rollouts = json.loads((folder / "rollouts.json").read_text(encoding="utf-8"))
    if case.method == "grpo":
        config = GRPOConfig(**shared, loss_type=case.loss_type, use_bias_correction_kl=False)  # see README.md
        return _from_file(GRPOTrainer, rollouts, pair=True)(model, args=config, **given)
    return _from_file(RLOOTrainer, rollouts, pair=False)(model, args=RLOOConfig(**shared), **given)


def _from_file(trainer: Any, rollouts: dict[str, list[list[int]]], pair: bool) -> Any:
    """The trainer with the stored completions in place of generation; the k-th copy of a prompt gets the k-th."""

    class FromFile(trainer):
        def _generate_single_turn(self, prompt_ids: list[list[int]], *given: Any, **named: Any) -> Any:
            taken: dict[str, int] = {}
            completions = []
            for ids in prompt_ids:
                key = material.key(ids)
                completions.append(rollouts[key][taken.get(key, 0)])
                taken[key] = taken.get(key, 0) + 1
            return (completions, None) if pair else completions

    return FromFile


def _vowels(completions: list[str], **columns: Any) -> list[float]:
    return [material.reward(text) for text in completions]


def _ids(trainer: Any, case: cases.Case) -> list[Any]:
    """Token ids of the rows in order, and where the trained ones begin."""
    if case.online:
        return [trainer.processing_class(text=row["prompt"])["input_ids"] for row in trainer.train_dataset]
    if case.method == "sft":
        return [[row["input_ids"], row["labels"].count(-100)] for row in trainer.train_dataset]
    if case.method == "reward":
        return [[row[name], 0] for row in trainer.train_dataset for name in ("chosen_ids", "rejected_ids")]
    if case.method in ("orpo", "cpo", "simpo"):
        return [
            [row[f"{role}_input_ids"], row[f"{role}_labels"].count(-100)]
            for row in trainer.train_dataset
            for role in ("chosen", "rejected")
        ]
    names = ("chosen_ids", "rejected_ids")
    return [[row["prompt_ids"] + row[name], len(row["prompt_ids"])] for row in trainer.train_dataset for name in names]


if __name__ == "__main__":
    main(Path(sys.argv[1]), cases.of(sys.argv[2]), Path(sys.argv[3]))
