"""What is compared, and the hyper-parameters that both sides are given. Imports nothing but the standard library."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

STEPS = 8
LEARNING_RATE = 1e-3
MAX_GRAD_NORM = 1.0
ADAM_EPSILON = 1e-8
ONLINE_PROMPTS = 2
"""Prompts in an optimiser step of an online method."""
OFFLINE_BATCH = 4
GROUP = 4
"""Completions of a prompt, for most online methods."""
OPTIONS: dict[str, dict[str, Any]] = {
    "dpo": {"beta": 0.1},
    "ipo": {"beta": 0.1},
    "orpo": {"beta": 0.1},
    "cpo": {"beta": 0.1, "sft_weight": 1.0},
    "simpo": {"beta": 2.0, "gamma": 1.0},
    "apo-zero": {"beta": 0.1},
    "apo-down": {"beta": 0.1},
    "aot": {"beta": 0.1},
    "kto": {"beta": 0.1, "desirable_weight": 2.0, "undesirable_weight": 0.5},
    "bco": {"beta": 0.1},
    "grpo": {"beta": 0.04},
    "rloo": {"beta": 0.05},
    "dr-grpo": {"beta": 0.04},
    "gspo": {"beta": 0.04, "epsilon_low": 3e-4, "epsilon_high": 4e-4},
    "dapo": {"epsilon": 0.2, "epsilon_high": 0.28, "overlong_buffer": 6, "advantage_epsilon": 1e-4},
    "reinforce-plus-plus": {"beta": 0.05, "gamma": 1.0, "epsilon": 0.2},
    "grpo-replay-buffer": {"beta": 0.04},
    "ppo": {
        "kl_weight": 0.05,
        "gamma": 1.0,
        "gae_lambda": 0.95,
        "epsilon": 0.2,
        "value_weight": 0.1,
        "value_epsilon": 0.2,
    },
    "online-dpo": {"beta": 0.1},
    "nash-md": {"beta": 0.1, "mixture": 0.5},
    "xpo": {"beta": 0.1, "alpha": 0.01},
    "gkd": {"beta": 0.3},
    "gkd, data": {"on_policy_share": 0.0},
    "gkd, sampled": {"on_policy_share": 1.0},
    "gold": {"beta": 0.3, "merge": "bayesian", "on_policy_share": 0.0},
    "minillm": {"teacher_share": 0.0, "gamma": 0.9, "length_normalization": True},
    "minillm, policy gradient": {"single_step_decomposition": False, "rkl_advantage": True},
    "minillm, single step": {"single_step_decomposition": True, "rkl_advantage": False},
    "sdft": {"alpha": 0.3, "topk": 20, "template": "{prompt}\n\n{privileged_context}"},
    "sdpo": {
        "success_threshold": 0.12,
        "template": "{prompt}{hints}",
        "solution_template": "\nCorrect solution:\n\n{solution}\n\n",
    },
    "sdpo, sampled token": {"mode": "sampled_token", "alpha": 1.0},
    "sdpo, top-k": {"mode": "topk_logits", "topk": 20, "add_tail": True, "alpha": 0.3},
}
"""posttrain's options that are given, by method and by case; ``theirs_*.py`` puts them into TRL's words."""


ONLINE = (
    *("grpo", "rloo", "dr-grpo", "gspo", "dapo", "reinforce-plus-plus", "grpo-replay-buffer", "ppo"),
    *("online-dpo", "nash-md", "xpo", "gkd", "gold", "minillm", "sdft", "sdpo"),
)


FILES = {
    "sft": "sft.jsonl",
    "kto": "unpaired.jsonl",
    "bco": "unpaired.jsonl",
    "aot": "even.jsonl",
    "prm-step": "stepwise.jsonl",
    "sdft": "demonstrations.jsonl",
    "gold": "sft.jsonl",
}
"""Data of a method, where they are neither prompts alone nor preferences."""
KINDS = ("images", "experts")
"""Variants that are kinds of models: one with an image encoder and rows with pictures, and a mixture of experts."""


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
    variant: str = ""
    """Which of a method's losses, or whose answers: names further options in ``OPTIONS``."""
    older: bool = False
    """Whether the trainer is one that TRL 1.16 no longer has, and the older TRL is compared with."""
    steps: int = STEPS
    learning_rate: float = LEARNING_RATE
    fused: bool = False
    """Whether TRL's AdamW is the fused one: the same arithmetic in one kernel, which a model of size is faster with."""

    @property
    def online(self) -> bool:
        """Whether completions are sampled (here: taken from a file)."""
        return self.method in ONLINE

    @property
    def model(self) -> str:
        """The folder of the model that is trained."""
        if self.variant in KINDS:
            return f"{self.variant}-model"
        return {"reward": "reward-model", "prm-step": "step-model"}.get(self.method, "model")

    @property
    def rollouts(self) -> str:
        """The file of completions; TRL's PPO and MiniLLM are compared on completions of one length, see README.md."""
        if self.images:
            return "rollouts-images.json"
        return "rollouts-even.json" if self.method in ("ppo", "minillm") else "rollouts.json"

    @property
    def images(self) -> bool:
        """Whether rows have pictures."""
        return self.variant == "images"

    @property
    def prompts(self) -> int:
        """Rows, or prompts, of an optimiser step."""
        return OFFLINE_BATCH if self.method in ("gkd", "gold") or not self.online else ONLINE_PROMPTS

    @property
    def group_size(self) -> int:
        """Completions that the policy gives a prompt."""
        return {"online-dpo": 2, "nash-md": 1, "xpo": 1, "gkd": 1, "gold": 1}.get(self.method, GROUP)

    @property
    def rewarded(self) -> bool:
        """Whether completions are given rewards."""
        return self.method not in ("gkd", "gold", "minillm", "sdft")

    @property
    def name(self) -> str:
        """How the table and the files name it."""
        parts = [self.method]
        if self.variant:
            parts.append(self.variant)
        if self.loss_type:
            parts.append(self.loss_type)
        if self.accumulation > 1:
            parts.append(f"{self.accumulation} passes")
        if self.updates > 1:
            parts.append(f"{self.updates} updates")
        return ", ".join(parts)

    @property
    def data(self) -> str:
        """The file of ``material.py`` that is trained on."""
        if self.variant == "data":
            return "sft.jsonl"
        if self.images:
            return f"{'prompts' if self.online else 'preference' if self.method == 'dpo' else 'sft'}-images.jsonl"
        return FILES.get(self.method, "prompts.jsonl" if self.online else "preference.jsonl")

    @property
    def options(self) -> dict[str, Any]:
        """posttrain's options of the method that are given."""
        return OPTIONS.get(self.method, {}) | OPTIONS.get(f"{self.method}, {self.variant}", {})


CASES = [
    *(Case(method, accumulation) for method in ("sft", "dpo", "reward") for accumulation in (1, 2)),
    Case("grpo", updates=2, loss_type="grpo", aggregation="sequence"),
    Case("grpo", updates=2, loss_type="dapo", aggregation="token"),
    Case("rloo", updates=2),
    Case("sft", variant="images"),
    Case("dpo", variant="images"),
    Case("grpo", updates=2, loss_type="grpo", aggregation="sequence", variant="images"),
    Case("sft", variant="experts"),
    *(Case(method, accumulation) for method in ("ipo", "simpo", "apo-zero", "apo-down") for accumulation in (1, 2)),
    # One pass alone: TRL's likelihood term, margins in order and baselines depend on the passes, see README.md.
    *(Case(method) for method in ("orpo", "cpo", "aot", "kto")),
    Case("bco", older=True),
    *(Case(method, updates=2) for method in ("dr-grpo", "gspo", "dapo")),
    Case("reinforce-plus-plus", updates=2, older=True),
    Case("grpo-replay-buffer", updates=2, older=True),
    Case("ppo", updates=2, older=True),
    Case("prm-step", older=True),
    Case("online-dpo"),
    *(Case(method, older=True) for method in ("nash-md", "xpo")),
    *(Case("gkd", variant=variant) for variant in ("data", "sampled")),
    Case("gold"),
    *(Case("minillm", variant=variant, older=True) for variant in ("policy gradient", "single step")),
    Case("sdft", updates=2),
    *(Case("sdpo", variant=variant, updates=2) for variant in ("sampled token", "top-k")),
]
METHODS = list(dict.fromkeys(case.method for case in CASES))


def arguments() -> argparse.Namespace:
    """What the command line of either side says: ``folder``, ``case``, ``result``, and ``save`` or None."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, help="what the rows and models were written to")
    parser.add_argument("case", type=of, help="name of the case")
    parser.add_argument("result", type=Path, help="file of the series")
    parser.add_argument("--save", help="folder for the trained model")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE)
    parser.add_argument("--fused", action="store_true", help="TRL's AdamW in one kernel, as posttrain's is")
    found = parser.parse_args()
    found.case = replace(found.case, steps=found.steps, learning_rate=found.learning_rate, fused=found.fused)
    return found


def of(name: str) -> Case:
    """The case called ``name``."""
    return next(case for case in CASES if case.name == name)
