"""One piece of work on TRL's side, by an interpreter that has TRL: ``python -m benchmarks.bench.theirs WORK.json``."""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.bench import cases
from benchmarks.bench.cases import Work


def main(work: Work) -> None:
    """Train and write down what it took."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        """When the loop begins and when each step is done, in seconds since the epoch."""

        def __init__(self) -> None:
            self.begun, self.ends = 0.0, []

        def on_train_begin(self, *given: Any, **named: Any) -> None:
            self.begun = time.time()

        def on_step_end(self, *given: Any, **named: Any) -> None:
            self.ends.append(time.time())

    case, clock = cases.CASES[work.case], Clock()
    with tempfile.TemporaryDirectory() as output:
        trainer = _trainer(work, case, output)
        trainer.add_callback(clock)
        trainer.train()
    log = [line for line in trainer.state.log_history if "loss" in line]
    result = {
        "begun": clock.begun,
        "ends": clock.ends,
        "losses": [line["loss"] for line in log],
        "generation": getattr(trainer, "generation", [0.0] * len(log)),
        "completion_length": [line.get("completions/mean_length", 0.0) for line in log],
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
        "ids": _ids(trainer, case),
    }
    Path(work.result).write_text(json.dumps(result), encoding="utf-8")


def _trainer(work: Work, case: cases.Case, output: str) -> Any:
    from datasets import Dataset
    from transformers import AutoTokenizer

    lines = (Path(work.folder) / case.file).read_text(encoding="utf-8").splitlines()
    build = {"sft": _sft, "dpo": _dpo, "grpo": _grpo}[case.method]
    given = {
        "model": work.model,
        "train_dataset": Dataset.from_list([json.loads(line) for line in lines]),
        "processing_class": AutoTokenizer.from_pretrained(work.model),
    }
    return build(case, _shared(work, case, output), given)


def _shared(work: Work, case: cases.Case, output: str) -> dict[str, Any]:
    """Arguments of every trainer; what is not named here is TRL's default."""
    return {
        "output_dir": output,
        "max_steps": work.steps,
        "per_device_train_batch_size": case.batch,
        "learning_rate": cases.LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_grad_norm": cases.MAX_GRAD_NORM,
        "adam_epsilon": cases.ADAM_EPSILON,
        "bf16": case.autocast,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "model_init_kwargs": {"dtype": "float32"},
        "seed": 0,
    }


def _sft(case: cases.Case, shared: dict[str, Any], given: dict[str, Any]) -> Any:
    from trl import SFTConfig, SFTTrainer

    shared |= {"train_sampling_strategy": "sequential", "shuffle_dataset": False}
    return SFTTrainer(args=SFTConfig(**shared, max_length=cases.MAX_LENGTH, completion_only_loss=True), **given)


def _dpo(case: cases.Case, shared: dict[str, Any], given: dict[str, Any]) -> Any:
    from trl import DPOConfig, DPOTrainer

    shared |= {"beta": cases.DPO_BETA, "max_length": cases.MAX_LENGTH, "train_sampling_strategy": "sequential"}
    return DPOTrainer(args=DPOConfig(**shared), **given)


def _grpo(case: cases.Case, shared: dict[str, Any], given: dict[str, Any]) -> Any:
    from trl import GRPOConfig, GRPOTrainer

    class Timed(GRPOTrainer):
        """TRL's trainer, with the seconds of generation written down."""

        def __init__(self, *words: Any, **named: Any):
            self.generation: list[float] = []
            super().__init__(*words, **named)

        def _generate(self, prompts: list[Any]) -> Any:
            begun = time.time()
            found = super()._generate(prompts)
            self.generation.append(time.time() - begun)
            return found

    config = GRPOConfig(
        **shared,
        num_generations=case.group,
        max_completion_length=case.max_new_tokens,
        beta=0.0,
        loss_type="grpo",
        shuffle_dataset=False,
        use_vllm=False,
    )
    return Timed(args=config, reward_funcs=_reward, **given)


def _reward(completions: list[Any], answer: list[str], **columns: Any) -> list[float]:
    texts = [completion[0]["content"] for completion in completions]
    return [cases.right_answer(text, right) for text, right in zip(texts, answer, strict=True)]


def _ids(trainer: Any, case: cases.Case) -> list[list[list[int]]]:
    """Token ids of every sequence of every row, in order."""
    rows = trainer.train_dataset
    if case.online:
        template = trainer.processing_class.apply_chat_template
        return [
            [template(row["prompt"], add_generation_prompt=True, tokenize=True, return_dict=True)["input_ids"]]
            for row in rows
        ]
    if case.method == "sft":
        return [[row["input_ids"]] for row in rows]
    return [[row["prompt_ids"] + row[name] for name in ("chosen_ids", "rejected_ids")] for row in rows]


if __name__ == "__main__":
    main(Work.read(sys.argv[1]))
