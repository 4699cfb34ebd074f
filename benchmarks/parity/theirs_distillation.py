"""TRL's distillation trainers; what a student would sample comes from a file.

Each is imported where it is made: no version of TRL has them all.
"""

from __future__ import annotations

from typing import Any

import cases
import material
import torch
from datasets import Dataset
from theirs_common import COMPLETIONS, Given, from_file, padded, sampling, unpadded, vowels

SEQUENTIAL = {"train_sampling_strategy": "sequential", "model_init_kwargs": {"dtype": "float32"}}


def gkd(given: Given) -> Any:
    """GKD, with the mean over the tokens that are trained; TRL divides by those of the data. See README.md."""
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    stored = given.rollouts()

    class FromFile(GKDTrainer):
        def generate_on_policy_outputs(self, model: Any, inputs: dict[str, Any], settings: Any) -> tuple[Any, ...]:
            prompts, mask = inputs["prompts"], inputs["prompt_attention_mask"]
            answers, answered = padded(stored(unpadded(prompts, mask)), "right")
            ids, attention = (torch.cat([prompts, answers], dim=1), torch.cat([mask, answered], dim=1))
            learnt = torch.cat([torch.zeros_like(mask), answered], dim=1).bool()  # (B, P + T)
            return ids, attention, ids.masked_fill(~learnt, -100)

        def compute_loss(
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            trained = (inputs["labels"][:, 1:] != -100).sum()
            return super().compute_loss(model, inputs, return_outputs, trained)

    options = given.case.options
    config = GKDConfig(
        **given.shared(cases.OFFLINE_BATCH),
        **SEQUENTIAL,
        beta=options["beta"],
        lmbda=options["on_policy_share"],
        temperature=1.0,
        max_new_tokens=material.LONGEST,
    )
    return FromFile(
        given.model,
        given.load("other-model"),
        args=config,
        train_dataset=_with_ids(given),
        processing_class=given.tokenizer,
    )


def _with_ids(given: Given) -> Dataset:
    """The rows as token ids: TRL's own collator would put a chat template around them."""
    rows, end = [], given.tokenizer.eos_token
    for row in given.rows():
        prompt = given.tokenizer(row["prompt"])["input_ids"]
        ids = given.tokenizer(row["prompt"] + row.get("completion", "") + end)["input_ids"]
        mask = [int(place >= len(prompt)) for place in range(len(ids))]
        rows.append({"prompt": row["prompt"], "input_ids": ids, "completion_mask": mask})
    return Dataset.from_list(rows)


def gold(given: Given) -> Any:
    """GOLD from a teacher with another tokenizer, spans as at their last tokens. See README.md."""
    from torch.utils.data import SequentialSampler
    from trl.experimental.gold import GOLDConfig, GOLDTrainer

    class Sequential(GOLDTrainer):
        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return SequentialSampler(self.train_dataset)

    config = GOLDConfig(
        **given.shared(cases.OFFLINE_BATCH),
        model_init_kwargs={"dtype": "float32"},
        beta=given.case.options["beta"],
        lmbda=given.case.options["on_policy_share"],
        use_uld_loss=True,
        uld_use_hybrid_loss=True,
        uld_token_merge_strategy=given.case.options["merge"],
    )
    trainer = Sequential(
        given.model,
        given.load("strange-model"),
        args=config,
        train_dataset=given.rows(),
        processing_class=given.tokenizer,
    )
    if given.tokenizer("a")["input_ids"][0] != given.tokenizer.bos_token_id:
        return trainer  # a tokenizer that adds no start token
    start = {"input_ids": [given.tokenizer.bos_token_id], "attention_mask": [1], "completion_mask": [0]}
    start["byte_offsets"] = [[0, 0]]
    trainer.train_dataset = trainer.train_dataset.map(lambda row: {name: start[name] + row[name] for name in start})
    return trainer


def minillm(given: Given) -> Any:
    """MiniLLM's policy gradient, whose advantages carry no gradient, on answers of one length. See README.md."""
    from trl.experimental.minillm import MiniLLMConfig, MiniLLMTrainer

    class Detached(from_file(MiniLLMTrainer, given.rollouts(), pair=True)):
        def _compute_advantage(self, *given: Any, **named: Any) -> torch.Tensor:
            return super()._compute_advantage(*given, **named).detach()

    options = given.case.options
    config = MiniLLMConfig(
        **sampling(given),
        gamma=options["gamma"],
        length_normalization=options["length_normalization"],
        rkl_advantage=options["rkl_advantage"],
        single_step_decomposition=options["single_step_decomposition"],
        loss_type="dapo",
    )
    unrewarded = {"train_dataset": given.rows(), "processing_class": given.tokenizer}
    return Detached(given.model, given.load("other-model"), args=config, **unrewarded)


def sdft(given: Given) -> Any:
    """Self-distillation from a demonstration."""
    from trl.experimental.sdft import SDFTConfig, SDFTTrainer

    options = given.case.options
    teacher = {
        "distillation_alpha": options["alpha"],
        "distillation_topk": options["topk"],
        "teacher_prompt_template": options["template"],
    }
    return _self_taught(SDFTTrainer, SDFTConfig, given, teacher)


def sdpo(given: Given) -> Any:
    """Self-distillation from the group's best answer."""
    from trl.experimental.sdpo import SDPOConfig, SDPOTrainer

    options = given.case.options
    teacher = {
        "distillation_mode": options["mode"],
        "distillation_alpha": options["alpha"],
        "distillation_topk": options.get("topk"),
        "distillation_add_tail": options.get("add_tail", False),
        "success_reward_threshold": options["success_threshold"],
        "reprompt_template": options["template"].replace("{hints}", "{solution}{feedback}"),
        "solution_template": options["solution_template"].replace("{solution}", "{successful_previous_attempt}"),
    }
    return _self_taught(SDPOTrainer, SDPOConfig, given, teacher, reward_funcs=vowels)


def _self_taught(trainer: Any, config: Any, given: Given, options: dict[str, Any], **more: Any) -> Any:
    stored = given.rollouts()

    class FromFile(trainer):
        def _generate(self, prompt_ids: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
            return prompt_ids, stored(prompt_ids)

    made = config(
        **given.shared(COMPLETIONS),
        **options,
        num_generations=cases.GROUP,
        max_completion_length=material.LONGEST,
        num_iterations=given.case.updates,
        shuffle_dataset=False,
        model_init_kwargs={"dtype": "float32"},
    )
    return FromFile(given.model, args=made, train_dataset=given.rows(), processing_class=given.tokenizer, **more)


BUILDERS = {"gkd": gkd, "gold": gold, "minillm": minillm, "sdft": sdft, "sdpo": sdpo}
