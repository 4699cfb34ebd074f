"""What the trainers of ``theirs_*.py`` are made from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cases
import material
import torch
from datasets import Dataset, Image, List
from transformers import AutoModelForCausalLM

COMPLETIONS = cases.ONLINE_PROMPTS * cases.GROUP
"""Completions of an optimiser step of a policy gradient."""


@dataclass(frozen=True)
class Given:
    """What a trainer is made from."""

    folder: Path
    """What ``material.py`` has written."""
    case: cases.Case
    output: str
    model: str
    """Folder of the model."""
    tokenizer: Any

    def rows(self) -> Dataset:
        """The case's data."""
        lines = (self.folder / self.case.data).read_text(encoding="utf-8").splitlines()
        rows = Dataset.from_list([json.loads(line) for line in lines])
        return rows.cast_column("images", List(Image())) if self.case.images else rows

    def load(self, name: str) -> Any:
        """The model in the folder ``name``."""
        return AutoModelForCausalLM.from_pretrained(self.folder / name, dtype="float32")

    def rollouts(self) -> Stored:
        """The completions that stand in for sampling."""
        return Stored(json.loads((self.folder / self.case.rollouts).read_text(encoding="utf-8")))

    def shared(self, examples: int) -> dict[str, Any]:
        """Arguments of every trainer; what is not named here has the same default on both sides.

        ``examples``: rows or completions of an optimiser step.
        """
        return {
            "output_dir": self.output,
            "max_steps": self.case.steps,
            "per_device_train_batch_size": examples // self.case.accumulation,
            "gradient_accumulation_steps": self.case.accumulation,
            "learning_rate": self.case.learning_rate,
            "lr_scheduler_type": "constant",
            "warmup_steps": 0,
            "weight_decay": 0.0,
            "max_grad_norm": cases.MAX_GRAD_NORM,
            "adam_epsilon": cases.ADAM_EPSILON,
            "optim": "adamw_torch_fused" if self.case.fused else "adamw_torch",
            "bf16": False,
            "use_cpu": True,
            "gradient_checkpointing": False,
            "logging_steps": 1,
            "report_to": [],
            "save_strategy": "no",
            "disable_tqdm": True,
            "seed": 0,
        }


class Stored:
    """Completions from a file; within one call the k-th copy of a prompt gets the k-th."""

    def __init__(self, completions: dict[str, list[list[int]]]):
        self.completions = completions

    def __call__(self, prompts: list[list[int]]) -> list[list[int]]:
        """A completion for each prompt, all as token ids."""
        taken: dict[str, int] = {}
        found = []
        for ids in prompts:
            key = material.key(ids)
            found.append(self.completions[key][taken.get(key, 0)])
            taken[key] = taken.get(key, 0) + 1
        return found


def vowels(completions: list[Any], **columns: Any) -> list[float]:
    """The reward function of the online cases; of conversations the answers' texts are rewarded."""
    return [material.reward(one if isinstance(one, str) else one[0]["content"]) for one in completions]


class Vowels(torch.nn.Module):
    """The reward function where TRL wants a model."""

    def forward(self, completions: list[str]) -> list[float]:
        return vowels(completions)


def rewarded(original: Any, tokenizer: Any) -> Any:
    """TRL's function ``get_reward``, which also knows ``vowels`` and ``Vowels``."""

    def get_reward(model: Any, sequences: torch.Tensor, pad: int, start: int) -> Any:
        if model is not vowels and not isinstance(model, Vowels):
            return original(model, sequences, pad, start)
        texts = tokenizer.batch_decode(sequences[:, start:], skip_special_tokens=True)
        return None, torch.tensor(model(texts)), None

    return get_reward


def sampling(given: Given) -> dict[str, Any]:
    """Arguments of GRPOTrainer's family."""
    return given.shared(COMPLETIONS) | {
        "beta": given.case.options.get("beta", 0.0),
        "num_generations": cases.GROUP,
        "max_completion_length": material.LONGEST,
        "num_iterations": given.case.updates,
        "shuffle_dataset": False,
        "model_init_kwargs": {"dtype": "float32"},
    }


def told(given: Given) -> dict[str, Any]:
    """What GRPOTrainer's family is told beside its arguments."""
    return {"reward_funcs": vowels, "train_dataset": given.rows(), "processing_class": given.tokenizer}


def from_file(trainer: Any, stored: Stored, pair: bool) -> Any:
    """The trainer with the stored completions in place of generation; ``pair``: with their log-probs, here None."""

    class FromFile(trainer):
        def _generate_single_turn(self, prompt_ids: list[list[int]], *given: Any, **named: Any) -> Any:
            return (stored(prompt_ids), None) if pair else stored(prompt_ids)

    return FromFile


def padded(rows: list[list[int]], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids ``(B, T)``, filled up with the padding token 0, and what is not padding."""
    found = [torch.tensor(row) for row in rows]
    ids, mask = (
        torch.nn.utils.rnn.pad_sequence(part, batch_first=True, padding_side=side)
        for part in (found, [torch.ones_like(row) for row in found])
    )
    return ids, mask


def unpadded(ids: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
    """The rows ``(B, T)`` without padding."""
    return [row[kept.bool()].tolist() for row, kept in zip(ids, mask, strict=True)]


def record_losses(trainer: Any) -> None:
    """Keep the loss of every step in ``trainer.losses``, for trainers that log it rounded."""
    backward = trainer.accelerator.backward
    trainer.losses = []

    def backward_and_keep(loss: torch.Tensor, **named: Any) -> None:
        trainer.losses.append(loss.item())
        backward(loss, **named)

    trainer.accelerator.backward = backward_and_keep
