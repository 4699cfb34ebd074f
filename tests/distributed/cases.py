"""Runs of tiny models under a strategy, and a worker that makes many of them in one group of processes.

``torchrun ... cases.py FOLDER`` makes the cases in FOLDER/cases.json and writes what each came to. What costs time
here is starting processes.
"""

from __future__ import annotations

import functools
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
    **dict.fromkeys(("dpo", "reward", "simpo", "orpo"), PAIRS),
    **{method: [{"prompt": p} for p in PROMPTS] for method in ("grpo", "rloo", "dapo", "ppo", "gold")},
    "gkd": [{"prompt": p, "completion": c} for p, c in zip(PROMPTS, GOOD, strict=True)],
    "kto": [
        {"prompt": p, "completion": c, "label": n % 2 == 0} for n, (p, c) in enumerate(zip(PROMPTS, GOOD, strict=True))
    ],
}
STABLE = ["dpo", "grpo", "reward", "rloo", "sft"]
#: Stable too, since promotion.
PROMOTED = ["dapo", "gkd", "gold", "kto", "orpo", "simpo"]
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


#: Options of episodes with pictures: a prompt a rank, one shown pictures, the other not; passes of one episode each.
ALBUM: dict[str, Any] = {"method": "grpo", "album": True, "batch_size": 2, "micro_batch_size": 1, "steps": 2}


def with_album() -> dict[str, Any]:
    """A tiny vision-language model, and episodes of two turns that show every second row a picture in between."""
    from posttrain import Environment, Observation
    from posttrain_testkit.tiny_vision import shown, tiny_vision

    class Album(Environment):
        def reset(self, row: dict[str, Any], seed: int) -> str:
            self.seed, self.turns = row["picture"], 0
            return "go"

        def step(self, message: dict[str, Any]) -> Any:
            self.turns += 1
            text = message["content"]
            odd = sum(ord(one) % 2 for one in text) / max(1, len(text))
            return Observation([shown("and", self.seed)] if self.seed else "and", odd, done=self.turns == 2)

    asked = [shown("look ", 1), {"role": "user", "content": "ab"}, shown("see ", 3), {"role": "user", "content": "c"}]
    model, processor = tiny_vision("llava")
    given: dict[str, Any] = {"model": model, "tokenizer": processor, "environment": Album, "reward": None}
    given |= {"data": [{"prompt": [one], "picture": 7 * (n % 2 == 0)} for n, one in enumerate(asked)], "shuffle": False}
    return given | {"eval_data": None, "max_turns": 2, "stop": list("abcdefghijklm"), "train_vision": "all"}


def train(
    method: str,
    output: Path,
    experts: bool = False,
    family: str | None = None,
    heads: int = 2,
    fields: dict[str, Any] | None = None,
    album: bool = False,
    **options: Any,
) -> Any:
    """A run of ``method`` from objects in memory; returns it."""
    from posttrain import api
    from posttrain.network import attention
    from posttrain_testkit.tiny import tiny_model, tiny_tokenizer
    from posttrain_testkit.tiny_experts import tiny_experts

    if options.get("compile"):
        _compile_quickly()
    head = "reward-head" if method == "reward" else "vocabulary"
    given: dict[str, Any] = {"tokenizer": tiny_tokenizer(), "data": ROWS[method], "eval_data": ROWS[method]}
    given["model"] = mixture() if experts else tiny_model(head, heads=heads)
    if family is not None:
        attention.register()
        given["model"] = tiny_experts(family, head, num_attention_heads=heads, **(fields or {}))
        given["model"].set_attn_implementation(options.get("attention", attention.NAME))
    if method in ("gkd", "gold") and "teacher_model" not in options:
        given |= {"teacher": tiny_model(seed=7)}
    if method in ("grpo", "rloo", "dapo", "ppo"):
        given |= {"reward": count_a}
    if method in ("grpo", "rloo", "dapo", "ppo", "gkd", "gold"):
        given |= {"group_size": 3, "max_new_tokens": 5}
    if album:
        given |= with_album()
    return api.train(method, output=str(output), **(COMMON | given | options))


def _compile_quickly() -> None:
    """Leave out the second half of torch's compiler: kernels in C++ take a minute, and nothing of them is spread."""
    import torch

    if not isinstance(torch.compile, functools.partial):
        torch.compile = functools.partial(torch.compile, backend="aot_eager")


def outcome(run: Any) -> dict[str, Any]:
    """What is compared: the series of losses and norms, evaluations, and what the policy occupies."""
    return {
        "losses": [line["loss"] for line in run.metrics],
        "norms": [line["grad_norm"] for line in run.metrics],
        "rewards": [line.get("reward") for line in run.metrics],
        "routers": [
            [line.get(f"router_{name}") for name in ("load_max", "load_min", "entropy")] for line in run.metrics
        ],
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
