"""TRL's trainers for fixed rows.

Each is imported where it is made: no version of TRL has them all.
"""

from __future__ import annotations

from typing import Any

import cases
from theirs_common import Given

SEQUENTIAL = {"train_sampling_strategy": "sequential", "model_init_kwargs": {"dtype": "float32"}}


def sft(given: Given) -> Any:
    """Supervised fine-tuning."""
    from trl import SFTConfig, SFTTrainer

    shared = given.shared(cases.OFFLINE_BATCH) | SEQUENTIAL
    config = SFTConfig(**shared, completion_only_loss=True, shuffle_dataset=False)
    return SFTTrainer(given.model, args=config, train_dataset=given.rows(), processing_class=given.tokenizer)


def reward(given: Given) -> Any:
    """A reward model."""
    from trl import RewardConfig, RewardTrainer

    config = RewardConfig(**given.shared(cases.OFFLINE_BATCH), **SEQUENTIAL)
    return RewardTrainer(given.model, args=config, train_dataset=given.rows(), processing_class=given.tokenizer)


def dpo(given: Given) -> Any:
    """DPO and what DPOTrainer has as its loss types."""
    from trl import DPOConfig, DPOTrainer

    method = given.case.method
    loss = "sigmoid" if method == "dpo" else method.replace("-", "_")
    shared = given.shared(cases.OFFLINE_BATCH) | SEQUENTIAL
    config = DPOConfig(**shared, beta=given.case.options["beta"], loss_type=[loss])
    start = given.load("other-model") if method == "aot" else None
    return DPOTrainer(given.model, start, args=config, train_dataset=given.rows(), processing_class=given.tokenizer)


def cpo(given: Given) -> Any:
    """CPO, and SimPO, which is a loss type of CPOTrainer."""
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    options = given.case.options
    shared = given.shared(cases.OFFLINE_BATCH) | SEQUENTIAL | {"beta": options["beta"]}
    if given.case.method == "simpo":
        shared |= {"loss_type": "simpo", "simpo_gamma": options["gamma"], "cpo_alpha": 0.0}  # see README.md
    else:
        shared |= {"loss_type": "sigmoid", "cpo_alpha": options["sft_weight"]}
    config = CPOConfig(**shared)
    return CPOTrainer(given.model, args=config, train_dataset=given.rows(), processing_class=given.tokenizer)


def orpo(given: Given) -> Any:
    """ORPO's own loss on the forward pass of TRL's CPO, whose likelihood leaves the prompt out. See README.md."""
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    class CompletionLikelihood(ORPOTrainer):
        concatenated_forward = CPOTrainer.concatenated_forward
        loss_type, cpo_alpha = ("simpo", 1.0)  # what makes that pass return means over tokens, and a likelihood

        @property
        def pad_token_id(self) -> int:
            return self.padding_value

    config = ORPOConfig(**given.shared(cases.OFFLINE_BATCH), **SEQUENTIAL, beta=given.case.options["beta"])
    return CompletionLikelihood(given.model, args=config, train_dataset=given.rows(), processing_class=given.tokenizer)


def kto(given: Given) -> Any:
    """KTO; each prompt's mismatched answer is the next row's, not the one before it. See README.md."""
    from trl import KTOConfig, KTOTrainer

    def next_answers(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        answers = batch["completion_ids"]
        return {"KL_completion_ids": [*answers[1:], answers[0]]}

    config = KTOConfig(**given.shared(cases.OFFLINE_BATCH), **SEQUENTIAL, **given.case.options)
    trainer = KTOTrainer(given.model, args=config, train_dataset=given.rows(), processing_class=given.tokenizer)
    trainer.train_dataset = trainer.train_dataset.map(next_answers, batched=True, batch_size=cases.OFFLINE_BATCH)
    return trainer


def bco(given: Given) -> Any:
    """BCO, without underlying distribution matching, which is TRL's default."""
    from trl.experimental.bco import BCOConfig, BCOTrainer

    shared = given.shared(cases.OFFLINE_BATCH) | {"beta": given.case.options["beta"]}
    config = BCOConfig(**shared)
    model, start = given.load("model"), given.load("model")
    return BCOTrainer(model, start, args=config, train_dataset=given.rows(), processing_class=given.tokenizer)


def prm(given: Given) -> Any:
    """A process reward model."""
    from transformers import AutoModelForTokenClassification
    from trl.experimental.prm import PRMConfig, PRMTrainer

    model = AutoModelForTokenClassification.from_pretrained(given.folder / "step-model", dtype="float32")
    config = PRMConfig(**given.shared(cases.OFFLINE_BATCH), train_sampling_strategy="sequential")
    return PRMTrainer(model, config, train_dataset=given.rows(), processing_class=given.tokenizer)


BUILDERS = {
    "sft": sft,
    "reward": reward,
    **dict.fromkeys(("dpo", "ipo", "apo-zero", "apo-down", "aot"), dpo),
    **dict.fromkeys(("cpo", "simpo"), cpo),
    "orpo": orpo,
    "kto": kto,
    "bco": bco,
    "prm-step": prm,
}


def _collated(batch: dict[str, Any]) -> list[Any]:
    """Token ids of a batch of one row, and where the trained ones begin; padding stands on the right."""
    learnt = batch["completion_mask"] if "completion_mask" in batch else batch["labels"] != -100  # (R, T)
    return [
        [ids[mask.bool()].tolist(), int(trained[mask.bool()].nonzero()[0])]
        for ids, mask, trained in zip(batch["input_ids"], batch["attention_mask"], learnt, strict=True)
    ]


def ids(trainer: Any, case: cases.Case) -> list[Any]:
    """Token ids of the rows in order, and where the trained ones begin."""
    rows = trainer.train_dataset
    if case.images:  # the rows are tokenised when a batch is made
        return [one for row in rows for one in _collated(trainer.data_collator([row]))]
    if case.method == "sft":
        return [[row["input_ids"], row["labels"].count(-100)] for row in rows]
    if case.method == "reward":
        return [[row[name], 0] for row in rows for name in ("chosen_ids", "rejected_ids")]
    if case.method in ("orpo", "cpo", "simpo"):
        roles = ("chosen", "rejected")
        return [[row[f"{role}_input_ids"], row[f"{role}_labels"].count(-100)] for row in rows for role in roles]
    if case.method == "prm-step":
        return [
            [row["input_ids"], [place for place, label in enumerate(row["labels"]) if label != -100]] for row in rows
        ]
    if case.method == "bco":
        return [[row["completion_input_ids"], row["completion_labels"].count(-100)] for row in rows]
    names = ("completion_ids",) if case.method == "kto" else ("chosen_ids", "rejected_ids")
    return [[row["prompt_ids"] + row[name], len(row["prompt_ids"])] for row in rows for name in names]
