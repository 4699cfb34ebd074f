"""One row of data for each schema, for pages and for the tests of new plugins."""

from __future__ import annotations

from typing import Any

SAMPLES: dict[str, dict[str, Any]] = {
    "language-modeling": {"text": "The capital of France is Paris."},
    "prompt-completion": {"prompt": "The capital of France is", "completion": " Paris."},
    "preference": {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
    "unpaired-preference": {"prompt": "The sky is", "completion": " blue.", "label": True},
    "ranked": {"prompt": "The sky is", "completions": [" blue.", " grey.", " green."]},
    "scored": {"prompt": "The sky is", "completion": " blue.", "score": 0.9},
    "stepwise": {"prompt": "2 + 3 * 4 =", "completions": [" 2 + 12", " = 14"], "labels": [True, True]},
    "forget-retain": {
        "forget": {"prompt": "The password is", "completion": " swordfish."},
        "retain": {"prompt": "The sky is", "completion": " blue."},
    },
    "trajectory": {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]},
    "prompt": {"prompt": "What is 2 + 3?", "answer": "5"},
}

#: Values of columns that only single methods need.
COLUMNS: dict[str, Any] = {
    "group_scores": [0.9, 0.2, 0.1],
    "alternative": {"prompt": "The password is", "completion": " something I do not know."},
    "completion": "2 + 3 = 5",
    "chosen_score": 0.9,
    "rejected_score": 0.2,
    "tie": False,
    "gold": " blue, on a clear day.",
    "scores": [0.9, 0.4, 0.1],
    "privileged_context": "Two and three more are five: 5.",
}
