"""Runs of tiny models under a strategy, and a worker that makes many of them in one group of processes.

``torchrun ... cases.py FOLDER`` makes the cases in FOLDER/cases.json and writes what each came to. What costs time
here is starting processes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

#: Rows of unlike lengths, seven of them: two ranks, or three, have unlike numbers of rows and of passes.
PROMPTS = ["ab", "abc", "a", "abcd", "bc", "dcba", "c"]
GOOD = ["cab", "a", "abcda", "bc", "dda", "b", "abcabc"]
BAD = ["fg", "hefgh", "e", "gg", "efef", "h", "ge"]
PAIRS = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in zip(PROMPTS, GOOD, BAD, strict=True)]
ROWS: dict[str, list[dict[str, Any]]] = {
    "sft": [{"prompt": p, "completion": c} for p, c in zip(PROMPTS, GOOD, strict=True)],
    "dpo": PAIRS,
    "reward": PAIRS,
    "grpo": [{"prompt": p} for p in PROMPTS],
    "rloo": [{"prompt": p} for p in PROMPTS],
    "ppo": [{"prompt": p} for p in PROMPTS],
    "gkd": [{"prompt": p, "completion": c} for p, c in zip(PROMPTS, GOOD, strict=True)],
    "kto": [
        {"prompt": p, "completion": c, "label": n % 2 == 0} for n, (p, c) in enumerate(zip(PROMPTS, GOOD, strict=True))
    ],
}
STABLE = ["dpo", "grpo", "reward", "rloo", "sft"]
#: Evaluated before and after, cut into passes of two rows: an odd number of rows leaves one rank a pass short.
COMMON = {
    "batch_size": 7,
    "micro_batch_size": 2,
    "steps": 4,
    "learning_rate": 0.01,
    "cache": "off",
    "progress": "quiet",
    "device": "cpu",
}


def count_a(completions: list[str], **_: Any) -> list[float]:
    """Share of the letter a among the first four."""
    return [text[:4].count("a") / 4 for text in completions]


def mixture() -> Any:
    """A tiny mixture of experts whose configuration asks for a router loss."""
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"vocab_size": 13, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.3}
    routing: dict[str, Any] = {"num_local_experts": 4, "output_router_logits": True, "router_aux_loss_coef": 0.5}
    torch.manual_seed(3)
    return MixtralForCausalLM(MixtralConfig(**sizes, **special, **routing, sliding_window=None))


def train(method: str, output: Path, experts: bool = False, **options: Any) -> Any:
    """A run of ``method`` from objects in memory; returns it."""
    from posttrain import api
    from posttrain_testkit.tiny import tiny_model, tiny_tokenizer

    head = "reward-head" if method == "reward" else "vocabulary"
    given = {"model": tiny_model(head), "tokenizer": tiny_tokenizer(), "data": ROWS[method], "eval_data": ROWS[method]}
    if experts:
        given["model"] = mixture()
    if method == "gkd" and "teacher_model" not in options:
        given |= {"teacher": tiny_model(seed=7)}
    if method in ("grpo", "rloo", "ppo"):
        given |= {"reward": count_a}
    if method in ("grpo", "rloo", "ppo", "gkd"):
        given |= {"group_size": 3, "max_new_tokens": 5}
    return api.train(method, output=str(output), **(COMMON | given | options))


def outcome(run: Any) -> dict[str, Any]:
    """What is compared: the series of losses and norms, evaluations, and what the policy occupies."""
    return {
        "losses": [line["loss"] for line in run.metrics],
        "norms": [line["grad_norm"] for line in run.metrics],
        "rewards": [line.get("reward") for line in run.metrics],
        "evaluations": run.evaluations,
        "shards": sum(_local(p).numel() for p in run.policy.parameters()),
        "whole": sum(p.numel() for p in run.policy.parameters()),
    }


def _local(parameter: Any) -> Any:
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter


def work(folder: Path, cases: dict[str, dict[str, Any]]) -> None:
    """Make every case; an error of one is its outcome, as long as every rank meets it."""
    from posttrain import api
    from posttrain.errors import PosttrainError
    from posttrain_testkit.tiny import tiny_model, tiny_tokenizer

    found = {}
    for name, case in cases.items():
        case = dict(case)
        method, path = case.pop("method"), case.pop("resume", None)
        try:
            if path is not None:
                objects = {"model": tiny_model(), "tokenizer": tiny_tokenizer(), "data": ROWS[method]}
                run = api.resume(folder / path, eval_data=ROWS[method], **objects, **case)
            else:
                run = train(method, folder / name, **case)
            found[name] = outcome(run)
        except PosttrainError as error:
            found[name] = {"error": str(error)}
    import torch.distributed as dist

    rank = dist.get_rank() if dist.is_initialized() else 0
    (folder / f"outcomes-{rank}.json").write_text(json.dumps(found))
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    work(Path(sys.argv[1]), json.loads((Path(sys.argv[1]) / "cases.json").read_text()))
