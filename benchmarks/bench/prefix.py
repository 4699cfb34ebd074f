"""A prompt, or its beginning, that several rows share, computed once or once a row: both ways in one process.

    python -m benchmarks.bench.prefix WORK.json

Rows of random tokens, because only their number matters; the loss and the gradients of both ways are compared. Both
project only the tokens that are trained, which costs the same either way and bounds what sharing can give; so a third
way is measured too, the one of a plain trainer, which computes the logits of every token.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.bench.figures import spread

#: Name -> rows, tokens that they begin with, tokens that each prompt adds, tokens of a completion, least ratio claimed.
SHAPES = {
    "group of 8, prompt to completion 4:1": (8, 256, 0, 64, 3.3),
    "pair, prompt to completion 2:1": (2, 256, 0, 128, 1.3),
    "8 prompts behind one system prompt, 2:1:1": (8, 128, 64, 64, 1.3),
}


def main(model: str, repeats: int, result: str) -> None:
    """Measure all shapes and write them down."""
    policy = load(model)
    found = [row for name in SHAPES for row in _compare(policy, name, repeats)]
    Path(result).write_text(json.dumps(found), encoding="utf-8")


def load(model: str) -> Any:
    """The model as a run would train it."""
    from posttrain.models.load import load_policy, load_tokenizer
    from posttrain.settings import Settings

    settings = Settings(model=model, device="cpu", dtype="float32")
    return load_policy(model, load_tokenizer(model, settings.model), settings.model).policy


#: What a row of the table compares with the shared prefix.
BEFORE = {"alone": "each row alone", "logits": "each row alone, logits of every token"}


def _compare(policy: Any, name: str, repeats: int) -> list[dict[str, Any]]:
    import torch
    from posttrain.training.micro_batches import token_budget

    *sizes, claimed = SHAPES[name]
    rows = _rows(policy, *sizes)
    budget = token_budget(None, policy.device, groups=True)
    seconds: dict[str, list[float]] = {"logits": [], "alone": [], "shared": []}
    gradients: dict[str, Any] = {}
    for turn in range(repeats + 1):  # the first round warms up
        for way, taken in seconds.items():
            policy.shared = way == "shared"
            loss = _loss_of_logits if way == "logits" else _loss
            spent = timed(lambda loss=loss: update(policy, rows, budget, None, loss))
            if turn:
                taken.append(spent)
            else:
                gradients[way] = torch.cat([p.grad.flatten() for p in policy.parameters()])
    shared = spread(seconds["shared"])
    found = []
    for way, before in BEFORE.items():
        plain = spread(seconds[way])
        difference = (gradients["shared"] - gradients[way]).abs().max() / gradients[way].abs().max()
        found.append(
            {
                "name": name,
                "before": before,
                "after": "shared prefix",
                "seconds": [plain, shared],
                "ratio": plain["median"] / shared["median"],
                "claimed": claimed,
                "gradient_difference": float(difference),
            }
        )
    return found


def timed(work: Callable[[], Any]) -> float:
    """Seconds that ``work`` takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def update(policy: Any, examples: list[Any], budget: int, size: int | None, loss: Any = None) -> None:
    """Forward and backward of one optimiser step as a run does them: micro-batches, gradients added up."""
    from posttrain.contract.pad import sequences_of
    from posttrain.network.kernels.cpu.gradient_buffers import clear_gradients, close_gradients
    from posttrain.training.micro_batches import micro_batches

    parameters = list(policy.parameters())
    clear_gradients(parameters)
    for micro in micro_batches(examples, budget, size, policy.packed, policy.shared):
        (loss or _loss)(policy, sequences_of(micro)).backward()
    close_gradients(parameters)


def _loss(policy: Any, sequences: list[Any]) -> Any:
    from posttrain.network.chunked_head import TokenQuery

    return -policy(sequences, TokenQuery())["logps"].sum()


def _loss_of_logits(policy: Any, sequences: list[Any]) -> Any:
    import torch

    ids = torch.stack([sequence.ids for sequence in sequences])  # (R, L): the rows here are equally long
    trained = torch.stack([sequence.trained for sequence in sequences])[:, 1:]  # (R, L - 1)
    logits = policy.inner(input_ids=ids, use_cache=False).logits[:, :-1]  # (R, L - 1, V)
    logps = logits.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]  # (R, L - 1)
    return -logps[trained].sum()


def _rows(policy: Any, count: int, shared: int, own: int, completion: int) -> list[Any]:
    import torch
    from posttrain.contract.views import Example, Sequence

    torch.manual_seed(0)
    vocabulary = policy.inner.config.vocab_size
    before = torch.randint(0, vocabulary, (shared,))
    trained = torch.arange(shared + own + completion) >= shared + own
    rows = [torch.cat([before, torch.randint(0, vocabulary, (own + completion,))]) for _ in range(count)]
    return [Example({"completion": [Sequence(ids, trained)]}) for ids in rows]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
