"""TRL's online preference trainers on the completions of a file.

The first two completions of a prompt stand in for its two answers, whoever gives them: the policy twice, or the policy
and then the reference, or the mixture of both.
"""

from __future__ import annotations

from typing import Any

import cases
import material
import torch
from theirs_common import Given, Stored, padded, record_losses, rewarded, unpadded, vowels


def online_dpo(given: Given) -> Any:
    """Online DPO."""
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    stored = given.rollouts()

    class FromFile(OnlineDPOTrainer):
        def _generate(self, model: Any, prompts: list[str], images: Any = None) -> tuple[Any, ...]:
            ids = 2 * given.tokenizer(prompts)["input_ids"]  # with the start token, which TRL's own leaves out
            return *padded(ids, "left"), *padded(stored(ids), "right"), None

    return _made(FromFile, OnlineDPOConfig, given)


def nash_md(given: Given) -> Any:
    """Nash mirror descent; the first completion is the policy's, the second the mixture's."""
    from trl.experimental.nash_md import NashMDConfig, NashMDTrainer, nash_md_trainer

    nash_md_trainer.get_reward = rewarded(nash_md_trainer.get_reward, given.tokenizer)
    stored = given.rollouts()

    class FromFile(NashMDTrainer):
        def _generate_completions(self, model: Any, prompts: dict[str, Any]) -> tuple[torch.Tensor, ...]:
            return _two(stored, prompts)

    return _made(FromFile, NashMDConfig, given)


def xpo(given: Given) -> Any:
    """Exploratory preference optimisation; the second completion is the reference's."""
    from trl.experimental.xpo import XPOConfig, XPOTrainer, xpo_trainer

    xpo_trainer.get_reward = rewarded(xpo_trainer.get_reward, given.tokenizer)
    stored = given.rollouts()

    class FromFile(XPOTrainer):
        def _generate_completions(self, prompts: dict[str, Any], model: Any) -> tuple[torch.Tensor, ...]:
            return _two(stored, prompts)

    return _made(FromFile, XPOConfig, given, alpha=given.case.options["alpha"])


def _two(stored: Stored, prompts: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Both answers to each prompt, as ``(B, P + T)`` with the prompt before them."""
    ids = unpadded(prompts["input_ids"], prompts["attention_mask"])
    answers, _ = padded(stored(2 * ids), "right")  # (2B, T)
    first, second = (torch.cat([prompts["input_ids"], half], dim=1) for half in answers.chunk(2))
    return first, second


def _made(trainer: Any, config: Any, given: Given, **options: Any) -> Any:
    told = given.shared(cases.ONLINE_PROMPTS) | {
        "beta": given.case.options["beta"],
        "max_new_tokens": material.LONGEST,
        "train_sampling_strategy": "sequential",
    }
    made = trainer(
        model=given.load("model"),
        ref_model=given.load("model"),
        reward_funcs=vowels,
        args=config(**told, **options),
        train_dataset=given.rows(),
        processing_class=given.tokenizer,
    )
    record_losses(made)  # what it logs is rounded to four digits
    return made


BUILDERS = {"online-dpo": online_dpo, "nash-md": nash_md, "xpo": xpo}
