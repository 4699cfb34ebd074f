"""TRL's trainers of the policy-gradient family; here they take the completions of a file.

Each is imported where it is made: no version of TRL has them all.
"""

from __future__ import annotations

from typing import Any

import cases
import material
from theirs_common import Given, from_file, sampling, told, vowels


def grpo(given: Given) -> Any:
    """GRPO, and the successors that are options of GRPOTrainer."""
    from trl import GRPOConfig, GRPOTrainer
    from trl.rewards import get_soft_overlong_punishment

    options, loss = given.case.options, {"loss_type": given.case.loss_type}
    if given.case.method == "dr-grpo":
        loss = {"loss_type": "dr_grpo", "scale_rewards": "none"}
    if given.case.method == "gspo":
        ratio = {"importance_sampling_level": "sequence"}
        loss = {"loss_type": "grpo", "epsilon": options["epsilon_low"], "epsilon_high": options["epsilon_high"]} | ratio
    rewards: list[Any] = [vowels]
    if given.case.method == "dapo":
        loss = {"loss_type": "dapo", "epsilon": options["epsilon"], "epsilon_high": options["epsilon_high"]}
        rewards.append(get_soft_overlong_punishment(material.LONGEST, options["overlong_buffer"]))
    config = GRPOConfig(**sampling(given), **loss, use_bias_correction_kl=False)  # see README.md
    trainer = from_file(GRPOTrainer, given.rollouts(), pair=True)
    return trainer(given.model, args=config, **told(given) | {"reward_funcs": rewards})


def rloo(given: Given) -> Any:
    """RLOO."""
    from trl import RLOOConfig, RLOOTrainer

    trainer = from_file(RLOOTrainer, given.rollouts(), pair=False)
    return trainer(given.model, args=RLOOConfig(**sampling(given)), **told(given))


def replay(given: Given) -> Any:
    """GRPO with a replay buffer, on groups that all have a spread: the buffer fills and is not used. See README.md."""
    from trl.experimental.grpo_with_replay_buffer import GRPOWithReplayBufferConfig, GRPOWithReplayBufferTrainer

    trainer = from_file(GRPOWithReplayBufferTrainer, given.rollouts(), pair=True)
    config = GRPOWithReplayBufferConfig(**sampling(given), loss_type="grpo", use_bias_correction_kl=False)
    return trainer(model=given.model, args=config, **told(given))


BUILDERS = {**dict.fromkeys(("grpo", "dr-grpo", "gspo", "dapo"), grpo), "rloo": rloo, "grpo-replay-buffer": replay}


def ids(trainer: Any) -> list[list[int]]:
    """Token ids of the prompts, in order, each once."""
    rows = trainer.train_dataset
    if "completion_mask" in rows.column_names:  # already tokenised, with answers
        return [row["input_ids"][: row["completion_mask"].index(1)] for row in rows]
    if "prompt" not in rows.column_names:  # already tokenised, and copied for every completion
        return rows["input_ids"][:: cases.GROUP]
    if "images" in rows.column_names:
        from trl.data_utils import prepare_multimodal_messages

        shown = [prepare_multimodal_messages(row["prompt"], images=row["images"]) for row in rows]
        return [trainer._tokenize_prompts([one])[0][0] for one in shown]
    return [trainer.processing_class(text=row["prompt"])["input_ids"] for row in rows]
