"""What is compared, and what both sides are told. Imports nothing but the standard library: the peer reads it too."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LEARNING_RATE = 1e-5
MAX_GRAD_NORM = 1.0
ADAM_EPSILON = 1e-8
MAX_LENGTH = 512
"""Longest row in tokens; longer ones are left out before either side sees them, so nothing is cut."""
DPO_BETA = 0.1


@dataclass(frozen=True)
class Case:
    """One piece of work. ``batch`` counts examples of an optimiser step: rows, pairs, completions."""

    name: str
    title: str
    method: str
    batch: int
    steps: int
    group: int = 1
    """Completions of a prompt."""
    max_new_tokens: int = 0
    speed: float = 0.0
    """Least ratio of the speeds that is claimed; 0 claims nothing."""
    memory: float = 0.0
    """Largest ratio of the peak memories that is claimed; 0 claims nothing."""
    command: bool = False
    """Whether posttrain is run as a command rather than from Python."""
    autocast: bool = False
    """Whether both sides compute in bfloat16 over float32 weights."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of posttrain other than the defaults that are measured."""
    loss_bound: float = 1e-3
    """Largest relative difference of a step's loss that counts as the same training."""

    @property
    def online(self) -> bool:
        """Whether completions are sampled."""
        return self.group > 1

    @property
    def file(self) -> str:
        """The rows, in the folder of the material."""
        return {"sft": "sft.jsonl", "dpo": "preference.jsonl", "grpo": "prompts.jsonl"}[self.method]


CASES = {
    case.name: case
    for case in (
        Case("sft", "SFT, GSM8K, batch 8", "sft", 8, 4, speed=3.5, memory=0.35),
        Case("dpo", "DPO, preferences, batch 4 pairs", "dpo", 4, 4, speed=5.0, memory=0.35),
        Case(
            "grpo",
            "GRPO, reasoning-gym, 16 completions of up to 96 tokens",
            "grpo",
            16,
            4,
            group=8,
            max_new_tokens=96,
            speed=3.5,
        ),
        Case("start", "From the command to the first step", "sft", 8, 1, command=True),
    )
}
GRADIENTS = {"bfloat16_gradients": True}


def _variant(name: str, suffix: str, words: str, **changes: Any) -> Case:
    """Another way to do the case ``name``."""
    case = CASES[name]
    return dataclasses.replace(case, name=f"{name}-{suffix}", title=f"{case.title}; {words}", **changes)


_NARROW: dict[str, Any] = {"autocast": True, "loss_bound": 3e-2, "speed": 0.0, "memory": 0.0}
CASES |= {
    case.name: case
    for case in (
        *(_variant(n, "gradients", "posttrain with --bfloat16-gradients", settings=GRADIENTS) for n in ("sft", "dpo")),
        *(_variant(n, "bfloat16", "both sides under bfloat16 autocast", **_NARROW) for n in ("sft", "dpo", "grpo")),
    )
}


@dataclass
class Work:
    """What one process is asked to do, as it travels to it: a JSON file."""

    case: str
    folder: str
    """Where the rows lie."""
    model: str
    steps: int
    result: str
    """File that the process writes."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of posttrain other than the defaults (techniques)."""
    share: bool = True
    """Whether prompts that several rows begin with are computed once (techniques)."""

    def write(self, file: Path) -> None:
        """Put it into ``file``."""
        file.write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, file: str) -> Work:
        """What ``write`` wrote."""
        return cls(**json.loads(Path(file).read_text(encoding="utf-8")))


def right_answer(completion: str, answer: str) -> float:
    """The verifiable reward of the online case, the same function on both sides: does the answer occur?"""
    return float(answer in completion)
