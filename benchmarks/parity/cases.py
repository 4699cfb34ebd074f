"""What is compared, and the hyper-parameters that both sides are given. Imports nothing but the standard library."""

from __future__ import annotations

from dataclasses import dataclass

STEPS = 8
LEARNING_RATE = 1e-3
MAX_GRAD_NORM = 1.0
ADAM_EPSILON = 1e-8
BETA = {
    "dpo": 0.1,
    "ipo": 0.1,
    "orpo": 0.1,
    "cpo": 0.1,
    "simpo": 2.0,
    "apo-zero": 0.1,
    "apo-down": 0.1,
    "grpo": 0.04,
    "rloo": 0.05,
}
GAMMA = {"simpo": 1.0}
SFT_WEIGHT = {"cpo": 1.0}
ONLINE_PROMPTS = 2
"""Prompts in an optimiser step of an online method."""
OFFLINE_BATCH = 4


@dataclass(frozen=True)
class Case:
    """One comparison. ``loss_type`` is TRL's name and ``aggregation`` ours for the same reduction."""

    method: str
    accumulation: int = 1
    """Forward passes into which an optimiser step is cut, on both sides."""
    updates: int = 1
    """Updates per rollout (TRL's num_iterations)."""
    loss_type: str = ""
    aggregation: str = ""

    @property
    def online(self) -> bool:
        """Whether completions are sampled (here: taken from a file)."""
        return self.method in ("grpo", "rloo")

    @property
    def name(self) -> str:
        """How the table and the files name it."""
        parts = [self.method]
        if self.loss_type:
            parts.append(self.loss_type)
        if self.accumulation > 1:
            parts.append(f"{self.accumulation} passes")
        if self.updates > 1:
            parts.append(f"{self.updates} updates")
        return ", ".join(parts)


CASES = [
    *(Case(method, accumulation) for method in ("sft", "dpo", "reward") for accumulation in (1, 2)),
    Case("grpo", updates=2, loss_type="grpo", aggregation="sequence"),
    Case("grpo", updates=2, loss_type="dapo", aggregation="token"),
    Case("rloo", updates=2),
    *(Case(method, accumulation) for method in ("ipo", "simpo", "apo-zero", "apo-down") for accumulation in (1, 2)),
    *(Case(method) for method in ("orpo", "cpo")),  # TRL's likelihood term depends on the passes, see README.md
]
METHODS = list(dict.fromkeys(case.method for case in CASES))


def of(name: str) -> Case:
    """The case called ``name``."""
    return next(case for case in CASES if case.name == name)
