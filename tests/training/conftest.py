"""Tiny models, rows and runs for the engine's tests."""

from pathlib import Path

import pytest
import torch
from posttrain import api
from posttrain_testkit.tiny import count_of_a, tiny_model, tiny_tokenizer

#: Rows of unlike lengths, so that a mean over the wrong count shows.
PROMPTS = ["ab", "abc", "a", "abcd", "bc", "dcba", "c", "bad"]
GOOD = ["cab", "a", "abcda", "bc", "dda", "b", "abcabc", "cc"]
BAD = ["fg", "hefgh", "e", "gg", "efef", "h", "ge", "hhhhh"]

ROWS = {
    "sft": [{"prompt": p, "completion": c} for p, c in zip(PROMPTS, GOOD, strict=True)],
    "dpo": [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in zip(PROMPTS, GOOD, BAD, strict=True)],
    "reward": [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in zip(PROMPTS, GOOD, BAD, strict=True)],
    "grpo": [{"prompt": p} for p in PROMPTS],
    "rloo": [{"prompt": p} for p in PROMPTS],
}
STABLE = sorted(ROWS)
#: Two pairs have one prompt, long enough to be computed once.
LONG = "abcdabcdab"
SHARED_PAIRS = [
    {"prompt": LONG, "chosen": "cab", "rejected": "fgh"},
    {"prompt": LONG, "chosen": "a", "rejected": "hefgh"},
    {"prompt": "dc", "chosen": "abcda", "rejected": "e"},
    {"prompt": "bcd", "chosen": "bc", "rejected": "gg"},
]


@pytest.fixture
def train(tmp_path: Path):
    """Train a stable method on a tiny model; every call gets its own run directory."""
    calls = iter(range(100))

    def call(method: str, **keywords):
        head = "reward-head" if method == "reward" else "vocabulary"
        objects = {"model": tiny_model(head, keywords.pop("torch_dtype", torch.float32))}
        objects |= {
            "tokenizer": tiny_tokenizer(),
            "data": ROWS.get(method),
            "output": str(tmp_path / f"run-{next(calls)}"),
        }
        if method in ("grpo", "rloo"):
            objects |= {"reward": count_of_a, "group_size": 4, "max_new_tokens": 6}
        defaults = {
            "batch_size": 8,
            "steps": 3,
            "learning_rate": 1e-2,
            "progress": "quiet",
            "cache": "off",
            "device": "cpu",
        }
        return api.train(method, **(defaults | objects | keywords))

    return call
